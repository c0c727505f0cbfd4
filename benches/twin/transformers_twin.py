"""Hugging Face transformers' side of the SmolLM2 rows: `generate`, greedy, as a user calls it.

Prints one line of JSON as twin.py does.

    python benches/twin/transformers_twin.py --model .models/smollm2 --dtype bf16 --past 512 --new 64
"""

import argparse
import json
import time

import torch
import transformers
from memory import status_mib

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--dtype", required=True, choices=["f32", "f16", "bf16"])
parser.add_argument("--past", type=int, required=True)
parser.add_argument("--new", type=int, required=True, help="0: the prompt itself is measured")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=2.0)
args = parser.parse_args()
torch.set_num_threads(args.threads)


base = status_mib("VmRSS:")
dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
ids = torch.tensor([[(i * 37 + 11) % 40000 + 100 for i in range(args.past)]])


def generate(new):
    """Milliseconds of so many tokens, the prompt before them included."""
    start = time.perf_counter()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new,
        pad_token_id=0,
    )
    return (time.perf_counter() - start) * 1e3


def step():
    # The prompt's time is taken off.
    return generate(1) if not args.new else (generate(args.new + 1) - generate(1)) / args.new


with torch.inference_mode():
    step()
    start = time.perf_counter()
    samples = [step()]
    while time.perf_counter() - start < args.seconds:
        samples.append(step())
print(json.dumps({
    "samples_ms": samples, "peak_mib": status_mib("VmHWM:"), "base_mib": base,
    "note": f"transformers {transformers.__version__}",
}))
