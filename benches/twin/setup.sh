#!/bin/sh
# Makes benches/twin/.venv, where `cargo bench --bench twin` looks for PyTorch.
# PYTHON chooses the interpreter; pip's own variables (PIP_INDEX_URL, ..) apply.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$here/.venv"
"$here/.venv/bin/python" -m pip install --quiet --upgrade pip
"$here/.venv/bin/python" -m pip install -r "$here/requirements.txt"
"$here/.venv/bin/python" -c 'import torch, decord; print("torch", torch.__version__, "decord", decord.__version__)'
