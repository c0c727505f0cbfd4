"""Training rows of the twin: shapes, dtype and what is learned as in training.rs."""

import torch
import torch.nn.functional as F
from torch import nn


class LoraLinear(nn.Module):
    """A frozen linear layer with a factored adapter, as PEFT computes it."""

    def __init__(self, d_in, d_out, rank=16, alpha=32.0):
        super().__init__()
        self.base = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, d_in) / d_in**0.5)
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


class LoraLayer(nn.Module):
    def __init__(self, d, heads, kv_heads, head_dim, ff, eps=1e-5):
        super().__init__()
        self.head_dim = head_dim
        q, kv = heads * head_dim, kv_heads * head_dim
        self.norm1 = nn.RMSNorm(d, eps=eps).requires_grad_(False)
        self.q, self.k, self.v = LoraLinear(d, q), LoraLinear(d, kv), LoraLinear(d, kv)
        self.o = LoraLinear(q, d)
        self.norm2 = nn.RMSNorm(d, eps=eps).requires_grad_(False)
        self.gate, self.up, self.down = LoraLinear(d, ff), LoraLinear(d, ff), LoraLinear(ff, d)

    def forward(self, x, rope):
        b, n, _ = x.shape
        split = lambda t: t.view(b, n, -1, self.head_dim).transpose(1, 2)
        y = self.norm1(x)
        q, k, v = rotate(split(self.q(y)), rope), rotate(split(self.k(y)), rope), split(self.v(y))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class LoraDecoder(nn.Module):
    def __init__(self, layers, d, heads, kv_heads, head_dim, ff, theta=1e6):
        super().__init__()
        self.layers = nn.ModuleList(LoraLayer(d, heads, kv_heads, head_dim, ff) for _ in range(layers))
        self.norm = nn.RMSNorm(d, eps=1e-5).requires_grad_(False)
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x):
        inverse = 1.0 / self.theta ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), inverse)
        angles = torch.cat([angles, angles], -1).to(x.device)
        rope = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)


def rotate(x, rope):
    a, b = x.chunk(2, -1)
    return x * rope[0] + torch.cat([-b, a], -1) * rope[1]


def optimizer(parameters):
    """PyTorch's fastest AdamW, behind one clipping norm."""
    parameters = [p for p in parameters if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.02, fused=True)

    def step():
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()

    return adamw, step


def lora_step(measure, device, compiled):
    with torch.inference_mode(False), torch.enable_grad():
        model = compiled(LoraDecoder(2, 4096, 32, 8, 128, 14336).to(device))
        adamw, update = optimizer(model.parameters())
        x = torch.randn(1, 512, 4096, device=device)

        def step():
            adamw.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            update()

        return measure(step)


def adamw_step(measure, device):
    with torch.inference_mode(False), torch.enable_grad():
        d, kv, ff, rank = 4096, 1024, 14336, 16
        parameters = []
        for _ in range(32):
            for a, b in [(d, d), (d, kv), (d, kv), (d, d), (d, ff), (d, ff), (ff, d)]:
                for shape in [(rank, a), (b, rank)]:
                    parameters.append(nn.Parameter(torch.rand(*shape, device=device)))
        for p in parameters:
            p.grad = torch.rand_like(p)
        _, update = optimizer(parameters)
        return measure(update)


class MiniTpo(nn.Module):
    """The mini model: encoder, connector, language model with adapters, region head."""

    def __init__(self, vit, qformer, vocab=300, d=128):
        super().__init__()
        self.vit, self.qformer = vit, qformer
        self.project = nn.Linear(d, d)
        self.embed = nn.Embedding(vocab, d).requires_grad_(False)
        self.token = nn.Parameter(torch.randn(1, 1, d))
        self.decoder = LoraDecoder(4, d, 4, 2, 32, 352, theta=1e4)
        self.lm_head = LoraLinear(d, vocab)
        self.box = nn.Sequential(nn.Linear(d, d // 2), nn.ReLU(), nn.Linear(d // 2, 4))

    def forward(self, frames, ids, labels, target):
        n = frames.shape[0]
        visual = self.project(self.qformer(self.vit(frames)))
        x = self.embed(ids)
        x = torch.cat([x[:, :1], visual, x[:, 1:-1], self.token.expand(n, -1, -1)], 1)
        hidden = self.decoder(x)
        k = labels.shape[1]
        logits = self.lm_head(hidden[:, -k - 1 : -1])
        lm = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        box = self.box(hidden[:, -1])
        return lm + 2 * (box - target).abs().mean() + (1 - giou(box, target)).mean() / 5


def giou(a, b):
    low, high = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    inner = (high - low).clamp(min=0).prod(1)
    area = lambda t: (t[:, 2:] - t[:, :2]).prod(1)
    union = area(a) + area(b) - inner
    hull = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return inner / union - (hull - union) / hull


def tpo_step(measure, device, compiled, vit, qformer):
    with torch.inference_mode(False), torch.enable_grad():
        rows = 4
        model = compiled(MiniTpo(vit(), qformer()).to(device))
        adamw, update = optimizer(model.parameters())
        frames = torch.rand(rows, 8, 3, 64, 64, device=device)
        ids = torch.arange(1, 17, device=device).expand(rows, -1)
        labels = torch.arange(8, device=device).expand(rows, -1)
        target = torch.tensor([0.2, 0.3, 0.6, 0.7], device=device).expand(rows, -1)

        def step():
            adamw.zero_grad(set_to_none=True)
            loss = model(frames, ids, labels, target)
            loss.backward()
            update()
            loss.item()

        return measure(step)
