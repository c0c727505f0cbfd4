"""The PyTorch side of `cargo bench --bench twin`.

Every row has the shapes and the dtype of the row of the same name in rows.rs, written in plain
PyTorch: fused attention, preallocated key-value cache, inference mode. Prints one line of JSON.

    python benches/twin/twin.py --row vit-l --threads 2
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

# Before torch starts its pools.
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--row", required=True)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--device", default="cpu", help="a torch device")
parser.add_argument("--dtype", default="f32", choices=["f32", "f16", "bf16"])
parser.add_argument("--seconds", type=float, default=2.0, help="time to measure for")
parser.add_argument("--video", default="assets/bouncing_shapes.mp4")
parser.add_argument("--compile", action="store_true", help="torch.compile what the row runs")
parser.add_argument("--model", help="Hugging Face directory of SmolLM2; random weights without it")
args = parser.parse_args()
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(args.threads)

import torch
import torch.nn.functional as F
from memory import status_mib
from torch import nn

torch.set_num_threads(args.threads)
DEVICE = torch.device(args.device)
DTYPE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[args.dtype]


def reset_peak():
    """Makes VmHWM start again from the present size."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def synchronise():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def timed(step):
    start = time.perf_counter()
    step()
    synchronise()
    return (time.perf_counter() - start) * 1e3


def measure(step, per_sample=1, note=""):
    """Times `step` after a warm-up; `per_sample` units of work are done by one call."""
    once = timed(step)
    if once < 1e3:
        once = timed(step)
    reset_peak()
    count = min(max(math.ceil(args.seconds * 1e3 / once), 1), 1000)
    samples = [timed(step) / per_sample for _ in range(count)]
    return {"samples_ms": samples, "peak_mib": status_mib("VmHWM:"), "note": note}


def compiled(module):
    """The module, compiled where --compile asks for it."""
    if args.compile:
        # The length of a cache is a number of the module.
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        module.compile()
    return module


def build(module):
    return compiled(module.to(DEVICE, DTYPE).eval())


def randn(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


# --- UMT-L ------------------------------------------------------------------------------------


class VitBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VideoVit(nn.Module):
    def __init__(self, dim=1024, heads=16, blocks=23, tokens=3136):
        super().__init__()
        self.patch = nn.Conv3d(3, dim, (1, 16, 16), (1, 16, 16))
        self.register_buffer("positions", torch.randn(1, tokens, dim))
        self.blocks = nn.ModuleList(VitBlock(dim, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, frames):
        x = self.patch(frames.transpose(1, 2)).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def vit_l():
    model, frames = build(VideoVit()), randn(1, 16, 3, 224, 224)
    return measure(lambda: model(frames))


# --- SigLIP so400m and LLaVA-OneVision's connector ----------------------------------------------


class SiglipBlock(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        b, n, d = x.shape
        y = self.norm1(x)
        q, k, v = (p(y).view(b, n, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Siglip(nn.Module):
    def __init__(self, dim=1152, heads=16, hidden=4304, blocks=26, tokens=729):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 14, 14)
        self.register_buffer("positions", torch.randn(1, tokens, dim))
        self.blocks = nn.ModuleList(SiglipBlock(dim, heads, hidden) for _ in range(blocks))

    def forward(self, pictures):
        x = self.patch(pictures).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return x


def siglip(pictures):
    model, frames = build(Siglip()), randn(pictures, 3, 384, 384)
    return measure(lambda: model(frames))


class OneVision(nn.Module):
    """Projector, 27x27 tokens of a frame to 14x14, one newline at the end."""

    def __init__(self, d_vision=1152, d_llm=896):
        super().__init__()
        self.linear_1 = nn.Linear(d_vision, d_llm)
        self.linear_2 = nn.Linear(d_llm, d_llm)
        self.newline = nn.Parameter(torch.randn(d_llm))

    def forward(self, features):
        x = self.linear_2(F.gelu(self.linear_1(features)))
        frames, _, d = x.shape
        x = x.view(frames, 27, 27, d).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=(14, 14), mode="bilinear")
        return torch.cat([x.permute(0, 2, 3, 1).reshape(-1, d), self.newline[None]])


def one_vision():
    model, features = build(OneVision()), randn(32, 729, 1152)
    return measure(lambda: model(features))


# --- InternVideo2-CLIP-1B ---------------------------------------------------------------------


class InternVideo2Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)
        self.ls1 = nn.Parameter(torch.full((dim,), 0.1))
        self.norm2 = nn.RMSNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.ls2 = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        split = lambda t: t.view(b, n, self.heads, d // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q_norm(q)), split(self.k_norm(k)), split(v))
        x = x + self.ls1 * self.proj(y.transpose(1, 2).reshape(b, n, d))
        return x + self.ls2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class AttentionPool(nn.Module):
    def __init__(self, dim, heads, out):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-5) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, out)

    def forward(self, x):
        b, _, d = x.shape
        inputs = (x.mean(1, keepdim=True), x, x)
        q, k, v = (
            linear(norm(t)).view(b, t.shape[1], self.heads, d // self.heads).transpose(1, 2)
            for t, norm, linear in zip(inputs, self.norms, self.qkv)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, d)
        return self.proj(y)[:, 0]


class InternVideo2(nn.Module):
    def __init__(self, dim=1408, heads=16, hidden=6144, blocks=40, tokens=2049):
        super().__init__()
        self.patch = nn.Conv3d(3, dim, (1, 14, 14), (1, 14, 14))
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, tokens, dim))
        self.blocks = nn.ModuleList(InternVideo2Block(dim, heads, hidden) for _ in range(blocks))
        self.pool = AttentionPool(dim, heads, 768)

    def forward(self, frames):
        x = self.patch(frames.transpose(1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.pool(x)


def internvideo2():
    model, frames = build(InternVideo2()), randn(1, 8, 3, 224, 224)
    return measure(lambda: model(frames))


# --- SAM 2 image encoder ----------------------------------------------------------------------


class HieraBlock(nn.Module):
    def __init__(self, dim, dim_out, heads, window, pool):
        super().__init__()
        self.dim_out, self.heads, self.window, self.pool = dim_out, heads, window, pool
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.fc1 = nn.Linear(dim_out, 4 * dim_out)
        self.fc2 = nn.Linear(4 * dim_out, dim_out)
        self.shortcut = nn.Linear(dim, dim_out) if dim != dim_out else None

    def attend(self, x):
        b, h, w, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).unbind(2)
        if self.pool:
            q = halve(q.reshape(b, h, w, -1))
            h, w = q.shape[1:3]
            q = q.reshape(b, h * w, self.heads, -1)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(y.transpose(1, 2).reshape(b, h, w, -1))

    def forward(self, x):
        b, h, w, _ = x.shape
        y = self.norm1(x)
        if self.shortcut is not None:
            x = self.shortcut(y)
            x = halve(x) if self.pool else x
        if self.window:
            s = self.window
            ph, pw = -h % s, -w % s
            y = F.pad(y, (0, 0, 0, pw, 0, ph)) if ph or pw else y
            nh, nw = (h + ph) // s, (w + pw) // s
            y = self.attend(y.view(b, nh, s, nw, s, -1).transpose(2, 3).reshape(b * nh * nw, s, s, -1))
            s = y.shape[1]
            y = y.view(b, nh, nw, s, s, -1).transpose(2, 3).reshape(b, nh * s, nw * s, -1)
            y = y[:, : x.shape[1], : x.shape[2]]
        else:
            y = self.attend(y)
        x = x + y
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def halve(x):
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Hiera and the feature pyramid. Sine encodings, which depend on the size alone, are left out."""

    def __init__(self, dim, heads, stages, global_blocks, windows, background=(7, 7), width=256):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 7, 4, 3)
        self.pos_embed = nn.Parameter(torch.randn(1, dim, *background) * 0.02)
        self.pos_embed_window = nn.Parameter(torch.randn(1, dim, windows[0], windows[0]) * 0.02)
        blocks, self.ends = [], []
        for stage, count in enumerate(stages):
            for at in range(count):
                enters = stage > 0 and at == 0
                before = stage - 1 if enters else stage
                window = 0 if len(blocks) in global_blocks else windows[before]
                blocks.append(HieraBlock(dim << before, dim << stage, heads << stage, window, enters))
            self.ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.neck = nn.ModuleList(nn.Conv2d(dim << stage, width, 1) for stage in range(4))

    def forward(self, images):
        x = self.patch(images).permute(0, 2, 3, 1)
        h, w = x.shape[1:3]
        table = F.interpolate(self.pos_embed, size=(h, w), mode="bicubic")
        side = self.pos_embed_window.shape[-1]
        x = x + (table + self.pos_embed_window.tile(1, 1, h // side, w // side)).permute(0, 2, 3, 1)
        maps = []
        for at, block in enumerate(self.blocks):
            x = block(x)
            if at in self.ends:
                maps.append(x.permute(0, 3, 1, 2))
        maps = [conv(m) for conv, m in zip(self.neck, maps)]
        maps[2] = maps[2] + F.interpolate(maps[3], scale_factor=2.0, mode="nearest")
        return maps[:3]


def sam2(*shape):
    model, images = build(ImageEncoder(*shape)), randn(1, 3, 1024, 1024)
    return measure(lambda: model(images))


# --- Q-Former ---------------------------------------------------------------------------------


class BertAttention(nn.Module):
    def __init__(self, dim, heads, context):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(context, dim)
        self.value = nn.Linear(context, dim)
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x, context):
        b, n, d = x.shape
        split = lambda t: t.view(b, t.shape[1], self.heads, d // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.query(x)), split(self.key(context)), split(self.value(context)))
        return self.norm(self.dense(y.transpose(1, 2).reshape(b, n, d)) + x)


class QFormerLayer(nn.Module):
    def __init__(self, dim, heads, hidden, context):
        super().__init__()
        self.attention = BertAttention(dim, heads, dim)
        self.cross = BertAttention(dim, heads, context) if context else None
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x, visual):
        x = self.attention(x, x)
        if self.cross is not None:
            x = self.cross(x, visual)
        return self.norm(self.down(F.gelu(self.up(x))) + x)


class QFormer(nn.Module):
    def __init__(self, dim=768, heads=12, hidden=3072, layers=12, queries=96, context=1024):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, dim) * 0.02)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.layers = nn.ModuleList(
            QFormerLayer(dim, heads, hidden, context if i % 2 == 0 else None) for i in range(layers)
        )

    def forward(self, visual):
        x = self.norm(self.queries.expand(visual.shape[0], -1, -1))
        for layer in self.layers:
            x = layer(x, visual)
        return x


def qformer():
    model, visual = build(QFormer()), randn(1, 3136, 1024)
    return measure(lambda: model(visual))


# --- Llama family -----------------------------------------------------------------------------


class Decoder(nn.Module):
    """Embedding, blocks, final norm and a tied output layer; the cache is preallocated."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])

    def prepare(self, capacity):
        """Rotary tables and an empty cache for `capacity` positions."""
        c = self.c
        self.length = 0
        d = c["head_dim"]
        inverse = 1.0 / c["rope_theta"] ** (torch.arange(0, d, 2, device=DEVICE, dtype=torch.float32) / d)
        angles = torch.outer(torch.arange(capacity, device=DEVICE, dtype=torch.float32), inverse)
        angles = torch.cat([angles, angles], -1)
        self.cos, self.sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)
        shape = (1, c["num_key_value_heads"], capacity, d)
        for layer in self.layers:
            layer.k = torch.zeros(shape, device=DEVICE, dtype=DTYPE)
            layer.v = torch.zeros(shape, device=DEVICE, dtype=DTYPE)

    def forward(self, x):
        start, end = self.length, self.length + x.shape[1]
        rope = self.cos[start:end], self.sin[start:end]
        for layer in self.layers:
            x = layer(x, rope, start, end)
        self.length = end
        return self.norm(x)


class DecoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d, ff, hd = c["hidden_size"], c["intermediate_size"], c["head_dim"]
        q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
        self.input_layernorm = nn.RMSNorm(d, eps=c["rms_norm_eps"])
        bias = c.get("attention_bias", False)
        self.q_proj = nn.Linear(d, q, bias=bias)
        self.k_proj = nn.Linear(d, kv, bias=bias)
        self.v_proj = nn.Linear(d, kv, bias=bias)
        self.o_proj = nn.Linear(q, d, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(d, eps=c["rms_norm_eps"])
        self.gate_proj = nn.Linear(d, ff, bias=False)
        self.up_proj = nn.Linear(d, ff, bias=False)
        self.down_proj = nn.Linear(ff, d, bias=False)

    def forward(self, x, rope, start, end):
        c, (b, n, _) = self.c, x.shape
        cos, sin = rope
        split = lambda t: t.view(b, n, -1, c["head_dim"]).transpose(1, 2)
        y = self.input_layernorm(x)
        q = rotate(split(self.q_proj(y)), cos, sin)
        self.k[:, :, start:end] = rotate(split(self.k_proj(y)), cos, sin)
        self.v[:, :, start:end] = split(self.v_proj(y))
        # A single new token sees everything; longer inputs are fed to an empty cache only.
        y = F.scaled_dot_product_attention(
            q, self.k[:, :, :end], self.v[:, :, :end], is_causal=n > 1, enable_gqa=True
        )
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, n, -1))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


MISTRAL = dict(vocab_size=64, hidden_size=4096, intermediate_size=14336, num_hidden_layers=1,
               num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope_theta=1e6)
SMOLLM2 = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
               num_attention_heads=9, num_key_value_heads=3, head_dim=64, rms_norm_eps=1e-5, rope_theta=1e5)
QWEN2 = dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, attention_bias=True,
             num_attention_heads=14, num_key_value_heads=2, head_dim=64, rms_norm_eps=1e-6, rope_theta=1e6)


def mistral(new):
    past = 0 if new > 1 else 256
    model = build(Decoder(MISTRAL))
    model.prepare(past + new)
    if past:
        model(randn(1, past, 4096))
    x = randn(1, new, 4096)

    def step():
        model.length = past
        model(x)

    return measure(step)


def qwen2(new):
    """`new` rows through all layers, and the logits of the last; one token follows a prefill."""
    past = 0 if new > 1 else 6273
    model = build(Decoder(QWEN2))
    model.prepare(past + new)
    if past:
        model(randn(1, past, 896))
    x = randn(1, new, 896)

    def step():
        model.length = past
        return model(x)[:, -1:] @ model.embed_tokens.weight.T

    return measure(step)


def smollm2(past, new):
    """`new` tokens after `past` others, or without any the others and the choice of the first."""
    config, note = dict(SMOLLM2), "random weights"
    model_dir = Path(args.model) if args.model else None
    if model_dir:
        hf = json.loads((model_dir / "config.json").read_text())
        config.update({k: hf[k] for k in config if hf.get(k) is not None})
        note = model_dir.name
    model = build(Decoder(config))
    if model_dir:
        from safetensors.torch import load_file

        weights = {}
        for file in sorted(model_dir.glob("*.safetensors")):
            for key, value in load_file(file).items():
                key = key.removeprefix("model.").replace(".self_attn.", ".").replace(".mlp.", ".")
                if key != "lm_head.weight":
                    weights[key] = value
        model.load_state_dict(weights)
        del weights
    embedding = model.embed_tokens.weight
    ids = torch.tensor([[(i * 37 + 11) % 40000 + 100 for i in range(past)]], device=DEVICE)
    model.prepare(past + new)
    choose = lambda hidden: (hidden[:, -1:] @ embedding.T).argmax(-1)

    def read():
        model.length = 0
        return choose(model(F.embedding(ids, embedding)))

    if not new:
        return measure(lambda: read().item(), note=note)
    first = read()

    def step():
        # The prompt is in the cache; `new` tokens follow one by one.
        model.length, token = past, first
        for _ in range(new):
            token = choose(model(F.embedding(token, embedding)))
            token.item()

    return measure(step, per_sample=new, note=note)


# --- the rest ---------------------------------------------------------------------------------


def region_head():
    model = build(nn.Sequential(nn.Linear(4096, 2048), nn.ReLU(), nn.Linear(2048, 4)))
    task = randn(1, 4096)
    return measure(lambda: model(task))


def video_decode():
    import decord

    def step():
        reader = decord.VideoReader(args.video, num_threads=args.threads)
        n = len(reader)
        bounds = [int(i * n / 16) for i in range(17)]
        middle = [(a + max(b - 1, 0)) // 2 for a, b in zip(bounds, bounds[1:])]
        return reader.get_batch(middle).asnumpy()

    h, w = step().shape[1:3]
    return measure(step, note=f"decord, {w}x{h}")


class Clips(torch.utils.data.Dataset):
    """16 middle frames of the video, 224x224 bicubic with antialiasing, normalised: the transform
    of torchvision's Resize and Normalize on a uint8 tensor, which calls the same operators."""

    def __len__(self):
        return 1 << 30

    def __getitem__(self, _):
        import decord

        # One thread each: the workers are the parallelism.
        reader = decord.VideoReader(args.video, num_threads=1)
        n = len(reader)
        bounds = [int(i * n / 16) for i in range(17)]
        middle = [(a + max(b - 1, 0)) // 2 for a, b in zip(bounds, bounds[1:])]
        frames = torch.from_numpy(reader.get_batch(middle).asnumpy()).permute(0, 3, 1, 2)
        frames = F.interpolate(frames, (224, 224), mode="bicubic", antialias=True)
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return frames.to(torch.float32).div_(255).sub_(mean).div_(std)


def video_loader(batch=4, batches=8):
    loader = torch.utils.data.DataLoader(
        Clips(), batch_size=batch, num_workers=args.threads, prefetch_factor=2, persistent_workers=True,
        sampler=torch.utils.data.SequentialSampler(Clips()),
    )
    stream = iter(loader)

    def step():
        for _ in range(batches):
            frames = next(stream)
            assert frames.shape == (batch, 16, 3, 224, 224)

    return measure(step, per_sample=batch * batches, note=f"decord, DataLoader of {args.threads} workers")


def peak():
    """What the machine gives: a large product, and one pass over a large buffer."""
    side = 3072 if DEVICE.type == "cpu" else 8192
    a, b = randn(side, side), randn(side, side)
    product = measure(lambda: a @ b)
    x = torch.ones(1 << 27, device=DEVICE)
    read = measure(lambda: x.sum())
    return {
        "samples_ms": product["samples_ms"],
        "peak_mib": read["peak_mib"],
        "note": f"torch {torch.__version__}",
        "gflops": 2 * side**3 / min(product["samples_ms"]) / 1e6,
        "gbytes": x.nbytes / min(read["samples_ms"]) / 1e6,
    }


def cgdetr(train):
    """The temporal head: 75 clips and 32 words, four samples with losses and gradients or one without."""
    import cgdetr as head

    torch.set_default_device(DEVICE)
    if not train:
        model = build(head.CgDetr())
        inputs, _ = head.batch(randn, 1, 75, 32)
        return measure(lambda: model(*inputs))
    with torch.inference_mode(False), torch.enable_grad():
        model = build(head.CgDetr())
        inputs, targets = head.batch(randn, 4, 75, 32)
        inputs[-1].requires_grad_()

        def step():
            model.zero_grad(set_to_none=True)
            model.losses(model(*inputs), *targets).backward()

        return measure(step)


def training(row):
    import training as rows

    if row == "tpo-step":
        vit = lambda: VideoVit(128, 4, 4, 128)
        bert = lambda: QFormer(128, 4, 512, 4, 24, 128)
        return rows.tpo_step(measure, DEVICE, compiled, vit, bert)
    if row == "lora-step":
        return rows.lora_step(measure, DEVICE, compiled)
    return rows.adamw_step(measure, DEVICE)


def checkpoint(save):
    """torch.save to a temporary file, flushed and renamed; or torch.load. Nothing is summed."""
    import os
    import tempfile

    state = {f"{i}.weight": randn(1024, 4096) for i in range(16)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "weights.pt")

        def write():
            with open(path + ".tmp", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path + ".tmp", path)

        write()
        if save:
            return measure(write)
        return measure(lambda: torch.load(path, map_location=DEVICE, weights_only=True))


def sam2_track():
    """SAM 2 after the image encoder, with seven memories and sixteen object pointers."""
    import track

    model = build(track.TrackStep())
    model.table = model.table.to(DEVICE)
    inputs = track.inputs(randn)
    return measure(lambda: model(*inputs))


ROWS = {
    "lora-step": lambda: training("lora-step"),
    "adamw-step": lambda: training("adamw-step"),
    "tpo-step": lambda: training("tpo-step"),
    "checkpoint-save": lambda: checkpoint(True),
    "checkpoint-load": lambda: checkpoint(False),
    "cgdetr": lambda: cgdetr(False),
    "cgdetr-train": lambda: cgdetr(True),
    "vit-l": vit_l,
    "internvideo2-1b": internvideo2,
    "siglip-tile": lambda: siglip(1),
    "siglip-video": lambda: siglip(32),
    "onevision-connector": one_vision,
    "qformer": qformer,
    "sam2-tiny": lambda: sam2(96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7)),
    "sam2-large": lambda: sam2(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8)),
    "sam2-track": sam2_track,
    "mistral-prefill": lambda: mistral(256),
    "mistral-decode": lambda: mistral(1),
    "smollm2-prompt": lambda: smollm2(256, 0),
    "smollm2-decode-32": lambda: smollm2(32, 64),
    "smollm2-decode-512": lambda: smollm2(512, 64),
    "smollm2-decode-1000": lambda: smollm2(1000, 64),
    "qwen2-0.5b-prefill": lambda: qwen2(6273),
    "qwen2-0.5b-decode": lambda: qwen2(1),
    "region-head": region_head,
    "video-decode": video_decode,
    "video-loader": video_loader,
    "peak": peak,
}

if __name__ == "__main__":
    base = status_mib("VmRSS:")
    with torch.inference_mode():
        result = ROWS[args.row]()
    result["base_mib"] = base
    if DEVICE.type == "cuda":
        result["device_mib"] = torch.cuda.max_memory_allocated(DEVICE) / 2**20
    print(json.dumps(result))
