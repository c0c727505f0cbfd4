"""Rewrites a PyTorch checkpoint (.pth, .pt) as safetensors, names and values unchanged.

    python tools/pth_to_safetensors.py 1B_clip.pth 1B_clip.safetensors

InternVideo2-CLIP is published as three such files; see `tpo features --help`. Only tensors are
read (`weights_only=True`): nothing in the file is executed. Dictionaries named `module`, `model` or
`state_dict` around the tensors are taken off. Needs torch and safetensors.
"""

import sys

import torch
from safetensors.torch import save_file

WRAPPERS = ("module", "model", "state_dict")


def tensors(state):
    for name in WRAPPERS:
        if isinstance(state.get(name), dict):
            return tensors(state[name])
    kept = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for key in state.keys() - kept.keys():
        print(f"left out, not a tensor: {key}", file=sys.stderr)
    return kept


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = sys.argv[1:]
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    # Tensors that share storage are written one by one.
    kept = {key: value.detach().clone().contiguous() for key, value in tensors(state).items()}
    if not kept:
        sys.exit(f"{source}: no tensors")
    save_file(kept, target, metadata={"format": "pt"})
    print(f"{target}: {len(kept)} tensors")


main()
