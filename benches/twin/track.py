"""One step of SAM 2's video predictor in plain PyTorch, with the published sizes.

Memory attention (4 layers, one head of 256 channels, rotary positions on two axes), mask decoder
without a prompt, and memory encoder. Maps are [batch, channels, height, width].
"""

import torch
import torch.nn.functional as F
from torch import nn

SIDE, DIM, MEMORY = 64, 256, 64
PIXELS = SIDE * SIDE


def rope_tables():
    frequencies = 10000.0 ** -(torch.arange(0, DIM, 4).float() / DIM)
    at = torch.arange(PIXELS)
    angles = torch.cat([torch.outer(at % SIDE, frequencies), torch.outer(at // SIDE, frequencies)], 1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x, table, rotated):
    head, tail = x[:, :, :rotated], x[:, :, rotated:]
    pairs = torch.view_as_complex(head.float().reshape(*head.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * table.repeat(rotated // PIXELS, 1)).flatten(3)
    return torch.cat([turned.type_as(x), tail], 2)


class Attention(nn.Module):
    def __init__(self, key_dim=DIM, inner=DIM, heads=1):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(DIM, inner), nn.Linear(key_dim, inner), nn.Linear(key_dim, inner)
        self.out = nn.Linear(inner, DIM)

    def forward(self, q, k, v, table=None, pointers=0):
        split = lambda x: x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        q, k, v = split(self.q(q)), split(self.k(k)), split(self.v(v))
        if table is not None:
            q, k = rotate(q, table, q.shape[2]), rotate(k, table, k.shape[2] - pointers)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MemoryLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.cross = Attention(), Attention(MEMORY)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3))
        self.up, self.down = nn.Linear(DIM, 2048), nn.Linear(2048, DIM)

    def forward(self, x, memory, keys, table, pointers):
        y = self.norms[0](x)
        x = x + self.own(y, y, y, table)
        x = x + self.cross(self.norms[1](x), keys, memory, table, pointers)
        return x + self.down(F.relu(self.up(self.norms[2](x))))


class MapNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - u) / torch.sqrt(s + 1e-6)) + self.bias[:, None, None]


def mlp(*widths):
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class TwoWayBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = Attention(heads=8)
        self.to_image, self.to_tokens = Attention(inner=128, heads=8), Attention(inner=128, heads=8)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(4))
        self.mlp = mlp(DIM, 2048, DIM)

    def forward(self, tokens, pixels, first, positions, skip):
        q = tokens if skip else tokens + first
        y = self.own(q, q, tokens)
        tokens = self.norms[0](y if skip else tokens + y)
        tokens = self.norms[1](tokens + self.to_image(tokens + first, pixels + positions, pixels))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        pixels = self.norms[3](pixels + self.to_tokens(pixels + positions, tokens + first, tokens))
        return tokens, pixels


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(6, DIM))
        self.blocks = nn.ModuleList(TwoWayBlock() for _ in range(2))
        self.final, self.norm = Attention(inner=128, heads=8), nn.LayerNorm(DIM)
        self.up1, self.norm1 = nn.ConvTranspose2d(DIM, 64, 2, 2), MapNorm(64)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, 2)
        self.weights = nn.ModuleList(mlp(DIM, DIM, DIM, 32) for _ in range(4))
        self.iou, self.score = mlp(DIM, DIM, DIM, 4), mlp(DIM, DIM, DIM, 1)

    def forward(self, image, positions, prompt, fine, coarse):
        first = torch.cat([self.own[None], prompt], 1)
        tokens, pixels = first, image
        for i, block in enumerate(self.blocks):
            tokens, pixels = block(tokens, pixels, first, positions, i == 0)
        tokens = self.norm(tokens + self.final(tokens + first, pixels + positions, pixels))
        x = pixels.transpose(1, 2).reshape(1, DIM, SIDE, SIDE)
        x = F.gelu(self.norm1(self.up1(x) + coarse))
        x = F.gelu(self.up2(x) + fine)
        weights = torch.stack([m(tokens[:, 2 + i]) for i, m in enumerate(self.weights)], 1)
        masks = (weights @ x.flatten(2)).view(1, 4, 4 * SIDE, 4 * SIDE)
        return masks, self.iou(tokens[:, 1]).sigmoid(), tokens[:, 2:], self.score(tokens[:, 0])


class MemoryBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(DIM, DIM, 7, padding=3, groups=DIM), MapNorm(DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        self.gamma = nn.Parameter(torch.full((DIM,), 1e-6))

    def forward(self, x):
        y = self.norm(self.conv(x)).permute(0, 2, 3, 1)
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for i in range(4):
            layers += [nn.Conv2d(4**i, 4 ** (i + 1), 3, 2, 1), MapNorm(4 ** (i + 1)), nn.GELU()]
        self.mask = nn.Sequential(*layers, nn.Conv2d(256, DIM, 1))
        self.pixels = nn.Conv2d(DIM, DIM, 1)
        self.blocks = nn.Sequential(MemoryBlock(), MemoryBlock())
        self.out = nn.Conv2d(DIM, MEMORY, 1)

    def forward(self, image, mask):
        return self.out(self.blocks(self.pixels(image) + self.mask(mask)))


class TrackStep(nn.Module):
    """Given an encoded frame and a full window of memories: the mask, the pointer, the memory."""

    def __init__(self):
        super().__init__()
        self.layers, self.norm = nn.ModuleList(MemoryLayer() for _ in range(4)), nn.LayerNorm(DIM)
        self.decoder, self.encoder, self.pointer = Decoder(), MemoryEncoder(), mlp(DIM, DIM, DIM, DIM)
        self.table = rope_tables()

    def forward(self, image, positions, memory, memory_positions, pointers, prompt, fine, coarse):
        x = image + 0.1 * positions
        keys = memory + memory_positions
        for layer in self.layers:
            x = layer(x, memory, keys, self.table, pointers)
        x = self.norm(x)
        masks, iou, tokens, score = self.decoder(x, positions, prompt, fine, coarse)
        masks = torch.where(score[:, None, None] > 0, masks, -1024.0)[:, 1:]
        best = iou[:, 1:].argmax(-1)
        mask = masks[torch.arange(1), best].unsqueeze(1)
        pointer = self.pointer(tokens[:, 1:][torch.arange(1), best])
        full = F.interpolate(mask, (1024, 1024), mode="bilinear", align_corners=False)
        features = image.transpose(1, 2).reshape(1, DIM, SIDE, SIDE)
        return mask, pointer, self.encoder(features, full.sigmoid() * 20 - 10)


def inputs(randn, memories=7, pointers=16):
    tokens = pointers * DIM // MEMORY
    keys = memories * PIXELS + tokens
    return (
        randn(1, PIXELS, DIM),
        randn(1, PIXELS, DIM),
        randn(1, keys, MEMORY),
        randn(1, keys, MEMORY),
        tokens,
        randn(1, 2, DIM),
        randn(1, 32, 4 * SIDE, 4 * SIDE),
        randn(1, 64, 2 * SIDE, 2 * SIDE),
    )
