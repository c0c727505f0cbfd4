"""llama.cpp's side of the SmolLM2 rows, through its low-level API.

Prints one line of JSON as twin.py does. The file of a number format is made of --gguf once, beside it.

    python benches/twin/llama.py --gguf .models/smollm2.gguf --format q8_0 --past 512 --new 64
"""

import argparse
import json
import math
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np
from memory import status_mib

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--gguf", required=True, type=Path)
parser.add_argument("--format", required=True, choices=["f32", "f16", "bf16", "q8_0", "q4_0"])
parser.add_argument("--past", type=int, required=True)
parser.add_argument("--new", type=int, required=True, help="0: the prompt itself is measured")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=2.0)
args = parser.parse_args()

silent = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(silent, None)
llama.llama_backend_init()


def file_of(kind):
    """The weights in a number format, the output layer too."""
    path = args.gguf.with_name(f"{args.gguf.stem}-{kind}.gguf")
    if not path.is_file():
        options = llama.llama_model_quantize_default_params()
        options.ftype = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[kind]
        options.allow_requantize = True
        options.nthread = args.threads
        part = path.with_suffix(".part")
        if llama.llama_model_quantize(str(args.gguf).encode(), str(part).encode(), options):
            raise SystemExit(f"{args.gguf} cannot be written as {kind}")
        part.rename(path)
    return path


base = status_mib("VmRSS:")
model_options = llama.llama_model_default_params()
model_options.n_gpu_layers = 0
model = llama.llama_model_load_from_file(str(file_of(args.format)).encode(), model_options)
options = llama.llama_context_default_params()
options.n_ctx = options.n_batch = 2048
options.n_threads = options.n_threads_batch = args.threads
context = llama.llama_init_from_model(model, options)
memory = llama.llama_get_memory(context)
vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
prompt = [(i * 37 + 11) % 40000 + 100 for i in range(args.past)]


def choose(tokens):
    """Feeds tokens and chooses the likeliest next one."""
    # The batch points to it.
    array = (llama.llama_token * len(tokens))(*tokens)
    batch = llama.llama_batch_get_one(array, len(tokens))
    assert llama.llama_decode(context, batch) == 0
    logits = llama.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())


def step():
    """Milliseconds of the prompt, or of a new token."""
    llama.llama_memory_clear(memory, True)
    start = time.perf_counter()
    token = choose(prompt)
    if args.new:
        start = time.perf_counter()
        for _ in range(args.new):
            token = choose([token])
    return (time.perf_counter() - start) * 1e3 / max(args.new, 1)


step()
once = step() * max(args.new, 1)
count = min(max(math.ceil(args.seconds * 1e3 / once), 1), 1000)
samples = [step() for _ in range(count)]
version = llama.__version__
print(json.dumps({
    "samples_ms": samples, "peak_mib": status_mib("VmHWM:"), "base_mib": base,
    "note": f"llama-cpp-python {version}",
}))
