"""CG-DETR in PyTorch for the bench: the same layers, passes and losses as tpo-heads' temporal head.

Written from the paper (arXiv 2311.08835) and the head's own documentation; batch first, fused
attention where PyTorch has it, no decoding of foreign texts (nothing reads it). Dropout is off on
both sides.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def inverse_sigmoid(x, eps=1e-3):
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def mlp(*widths):
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def heads(x, n):
    b, length, d = x.shape
    return x.view(b, length, n, d // n).transpose(1, 2)


def merge(x):
    b, n, length, d = x.shape
    return x.transpose(1, 2).reshape(b, length, n * d)


def attend(q, k, v, hidden=None):
    mask = None if hidden is None else ~hidden[:, None, None, :]
    return merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class FeedForward(nn.Module):
    def __init__(self, d, ff):
        super().__init__()
        self.linear1, self.act, self.linear2 = nn.Linear(d, ff), nn.PReLU(), nn.Linear(ff, d)

    def forward(self, x):
        return self.linear2(self.act(self.linear1(x)))


class EncoderLayer(nn.Module):
    def __init__(self, d, n, ff):
        super().__init__()
        self.n, self.d = n, d
        self.in_proj = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.ff = FeedForward(d, ff)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x, pos, hidden):
        w, b, d = self.in_proj.weight, self.in_proj.bias, self.d
        q, k = F.linear(x + pos, w[: 2 * d], b[: 2 * d]).chunk(2, -1)
        v = F.linear(x, w[2 * d :], b[2 * d :])
        y = attend(heads(q, self.n), heads(k, self.n), heads(v, self.n), hidden)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.ff(x))


class Encoder(nn.Module):
    def __init__(self, d, n, ff, depth):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(d, n, ff) for _ in range(depth))

    def forward(self, x, pos, hidden):
        for layer in self.layers:
            x = layer(x, pos, hidden)
        return x


class T2vLayer(nn.Module):
    def __init__(self, d, n, ff):
        super().__init__()
        self.n = n
        self.out = nn.Linear(d, d)
        self.ff = FeedForward(d, ff)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def rest(self, x, y):
        x = x + y
        return self.norm2(x + self.ff(self.norm1(x)))

    def forward(self, x, pos, text, text_pos, hidden, dummies):
        q = heads((x + pos) * (x.shape[2] // self.n) ** -0.5, self.n)
        k, v = heads(text + text_pos, self.n), heads(text, self.n)
        scores = (q @ k.transpose(2, 3)).masked_fill(hidden[:, None, None, :], -math.inf)
        w = scores.softmax(-1)
        y = merge(w[..., dummies:] @ v[:, :, dummies:])
        return self.rest(x, self.out(y)), w.mean(1)


class DecoderLayer(nn.Module):
    def __init__(self, d, n, ff, first):
        super().__init__()
        self.n = n
        lin = lambda: nn.Linear(d, d)
        self.sq, self.sqp, self.sk, self.skp, self.sv, self.so = (lin() for _ in range(6))
        self.cq, self.ck, self.ckp, self.cv, self.cs, self.co = (lin() for _ in range(6))
        self.cqp = lin() if first else None
        self.ff = FeedForward(d, ff)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d) for _ in range(3))

    def forward(self, x, qpos, sine, mem, pos, hidden):
        h = lambda t: heads(t, self.n)
        q, k = self.sq(x) + self.sqp(qpos), self.sk(x) + self.skp(qpos)
        x = self.norm1(x + self.so(attend(h(q), h(k), h(self.sv(x)))))
        q, k, kp = self.cq(x), self.ck(mem), self.ckp(pos)
        if self.cqp is not None:
            q, k = q + self.cqp(qpos), k + kp
        q = torch.cat([h(q), h(self.cs(sine))], -1)
        k = torch.cat([h(k), h(kp)], -1)
        x = self.norm2(x + self.co(attend(q, k, h(self.cv(mem)), hidden)))
        return self.norm3(x + self.ff(x))


class Projection(nn.Module):
    def __init__(self, a, b, relu):
        super().__init__()
        self.norm, self.lin, self.relu = nn.LayerNorm(a), nn.Linear(a, b), relu

    def forward(self, x):
        x = self.lin(self.norm(x))
        return F.relu(x) if self.relu else x


class CgDetr(nn.Module):
    def __init__(self, d_text=4096, d_video=770, d=256, ff=1024, n=8, queries=10, dummies=45, prompts=10):
        super().__init__()
        self.d, self.dummies, self.n = d, dummies, n
        self.txt = nn.Sequential(Projection(d_text, d, True), Projection(d, d, False))
        self.vid = nn.Sequential(Projection(d_video, d, True), Projection(d, d, False))
        p = lambda *s: nn.Parameter(torch.randn(*s))
        self.types, self.query = p(2, d), p(queries, 2)
        self.dummy, self.dummy_pos = p(dummies, d), p(dummies, d)
        self.prompt, self.prompt_pos = p(prompts, d), p(1, d)
        self.moment, self.moment_pos, self.sent, self.sent_pos = p(d), p(d), p(d), p(d)
        self.txtproj, self.scls = Encoder(d, n, ff, 2), Encoder(d, n, ff, 1)
        self.mcls, self.encoder = Encoder(d, n, ff, 1), Encoder(d, n, ff, 3)
        self.t2v = nn.ModuleList(T2vLayer(d, n, ff) for _ in range(2))
        self.decoder = nn.ModuleList(DecoderLayer(d, n, ff, i == 0) for i in range(3))
        self.dec_norm = nn.LayerNorm(d)
        self.query_scale, self.ref_point = mlp(d, d, d), mlp(d, d, d)
        self.bbox, self.anchor = mlp(d, d, d, 2), mlp(d, d, 1)
        self.span, self.cls = mlp(d, d, d, 2), nn.Linear(d, 2)
        self.sal1, self.sal2 = nn.Linear(d, d), nn.Linear(d, d)

    def positions(self, mask):
        x = mask.cumsum(1)
        x = x / (x[:, -1:] + 1e-6) * 2 * math.pi
        j = torch.arange(self.d)
        x = x[..., None] / 10000 ** (2 * (j // 2) / self.d)
        return torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), 3).flatten(2)

    def sine(self, ref):
        half = self.d // 2
        j = torch.arange(half)
        x = ref[..., None] * 2 * math.pi / 10000 ** (2 * (j // 2) / half)
        return torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), 4).flatten(2)

    def encode(self, vid, pos, mask, ctx, text, text_pos, hidden):
        x, w = vid, 0
        for layer in self.t2v:
            x, a = layer(x, pos, text, text_pos, hidden, self.dummies)
            w = w + a
        w = w / len(self.t2v)
        sim = (F.normalize(vid - ctx, dim=2) @ F.normalize(self.prompt, dim=1).T).softmax(-1)
        share = w[..., self.dummies :].sum(2).detach() * mask
        sim = (sim * (share / share.sum(1, keepdim=True))[..., None]).sum(1)
        top, at = sim.topk(1, dim=1)
        token = (top[..., None] * self.prompt[at]).sum(1, keepdim=True) + ctx
        for layer in self.t2v:
            token = layer.rest(token, layer.out.bias.expand_as(token))
        b = len(vid)
        pad = torch.cat([torch.zeros(b, 1, dtype=torch.bool), mask == 0], 1)
        ppos = self.prompt_pos[None].expand(b, 1, -1)
        mem = self.encoder(torch.cat([token, x], 1), torch.cat([ppos, pos], 1), pad)
        glob, local = mem[:, 0], mem[:, 1:] + mem[:, :1]
        sal = (self.sal1(local) * self.sal2(glob)[:, None]).sum(-1) / math.sqrt(self.d)
        attn = (w[..., self.dummies :] * (~hidden[:, None, self.dummies :])).sum(2).clamp(0, 1)
        return local, w, sal, attn

    def forward(self, vid, mask, text, text_mask, prompt):
        b, tokens = text.shape[:2]
        lengths = text_mask.sum(1).long()
        text = torch.cat([text, torch.zeros_like(text[:, :1])], 1)
        text = text.index_put((torch.arange(b), lengths), prompt)
        text_mask = torch.cat([torch.ones(b, 1), text_mask], 1)
        vid = self.vid(vid) + self.types[1]
        text = self.txt(text) + self.types[0]
        pos = self.positions(mask)
        text_pos = torch.zeros_like(text)
        rows = lambda p: p[None].expand(b, -1, -1)
        tp = torch.cat([rows(self.dummy_pos), text_pos], 1)
        hidden = torch.cat([torch.ones(b, self.dummies), text_mask], 1) == 0
        dummy = self.txtproj(torch.cat([rows(self.dummy), text], 1), tp, hidden)[:, : self.dummies]
        keys = torch.cat([dummy, text], 1)
        ctx = ((vid * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]).detach()
        mem, w, sal, attn = self.encode(vid, pos, mask, ctx, keys, tp, hidden)

        ref = self.query.sigmoid()[None].expand(b, -1, -1)
        x = torch.zeros(b, len(self.query), self.d)
        hs, refs = [], [ref]
        for i, layer in enumerate(self.decoder):
            sine = self.sine(ref)
            qpos = self.ref_point(sine)
            if i:
                sine = sine * self.query_scale(x)
            sine = sine * (self.anchor(x).sigmoid() / ref[..., 1:])
            x = layer(x, qpos, sine, mem, pos, mask == 0)
            hs.append(self.dec_norm(x))
            if i + 1 < len(self.decoder):
                new = (self.bbox(x) + inverse_sigmoid(ref)).sigmoid()
                refs.append(new)
                ref = new.detach()
        hs, refs = torch.stack(hs), torch.stack(refs)
        return dict(logits=self.cls(hs), spans=(self.span(hs) + inverse_sigmoid(refs)).sigmoid(), sal=sal,
                    attn=attn, w=w, vid=vid, text=text, dummy=dummy, pos=pos, mask=mask, ctx=ctx, keys=keys,
                    tp=tp, hidden=hidden, text_mask=text_mask, text_pos=text_pos)

    def losses(self, o, spans, labels, pairs):
        b, clips = o["mask"].shape
        mask, relevant = o["mask"], labels > 0
        # Every sample has a foreign text.
        roll = lambda t: torch.roll(t, -1, 0)
        _, _, nsal, nattn = self.encode(o["vid"], o["pos"], mask, o["ctx"], roll(o["keys"]), o["tp"], roll(o["hidden"]))
        one = lambda p: p.expand(b, 1, -1)
        no = torch.zeros(b, 1, dtype=torch.bool)
        words = self.scls(torch.cat([one(self.sent), o["text"]], 1), torch.cat([one(self.sent_pos), o["text_pos"]], 1),
                          torch.cat([no, o["text_mask"] == 0], 1))
        dwords = self.scls(torch.cat([one(self.sent), o["dummy"]], 1),
                           torch.cat([one(self.sent_pos), self.dummy_pos[None].expand(b, -1, -1)], 1), None)
        src = torch.cat([one(self.moment), o["vid"]], 1).repeat(2, 1, 1)
        spos = torch.cat([one(self.moment_pos), o["pos"]], 1).repeat(2, 1, 1)
        pad = mask == 0
        both = self.mcls(src, spos, torch.cat([torch.cat([no, pad | ~relevant], 1), torch.cat([no, pad | relevant], 1)]))
        m, nm = both[:b], both[b:]
        texts = torch.cat([dwords[:, 1:], words[:, 1:]], 1).transpose(1, 2)
        similarity = m[:, 1:] @ texts
        frames = torch.where(relevant[..., None], m[:, 1:], nm[:, 1:])

        total = 0
        layers = len(o["logits"])
        host = torch.cat([o["spans"], o["logits"]], -1).detach().cpu()
        for i in range(layers):
            rows, truth = [], []
            for s in range(b):
                p, t = host[i, s], spans[s]
                prob = p[:, 2:].softmax(-1)[:, :1]
                cost = 10 * torch.cdist(p[:, :2], t, p=1) - giou(p[:, None, :2], t[None]) - 4 * prob
                # One moment per sample: the assignment is the cheapest query.
                rows.append((s, int(cost[:, 0].argmin())))
                truth.append(t[0])
            si, qi = map(list, zip(*rows))
            truth = torch.stack(truth)
            got = o["spans"][i][si, qi]
            target = torch.ones(b, o["logits"].shape[2], dtype=torch.long)
            target[si, qi] = 0
            ce = F.cross_entropy(o["logits"][i].transpose(1, 2), target, torch.tensor([1.0, 0.1]), reduction="none")
            total = total + 10 * (got - truth).abs().mean() + (1 - giou(got, truth)).mean() + 4 * ce.mean()

        def contrast(scores, lab, msk):
            s = (msk * scores + (1 - msk) * -1e3) / 0.5
            logp = s - s.max(1, keepdim=True)[0].detach()
            logp = logp - torch.log(logp.exp().sum(1, keepdim=True) + 1e-6)
            weight = sum((lab >= r) * msk / ((lab >= r).sum(1, keepdim=True) + 1e-6) for r in range(1, 12))
            return -(logp * weight).sum() / len(s) / 12

        def margin(s):
            return (0.2 + s.gather(1, pairs[1]) - s.gather(1, pairs[0])).clamp(min=0).mean() * 2

        twice = torch.cat([labels, torch.zeros_like(labels)], 1), mask.repeat(1, 2)
        sal = margin(o["sal"]) + contrast(torch.cat([o["sal"], nsal], 1), *twice)
        sal = sal + (F.softplus(nsal) * mask).sum(1).mean()
        att = margin(o["attn"]) + contrast(torch.cat([o["attn"], nattn], 1), *twice)
        att = att - (torch.log(1 - nattn) * mask).sum(1).mean() + F.binary_cross_entropy(o["attn"], labels.clamp(0, 1))
        total = total + 4 * (sal + att)

        mom, oth = F.normalize(m[:, 0], dim=1), F.normalize(nm[:, 0], dim=1)
        for text, cls in ((words[:, 0], torch.arange(b)), (dwords[:, 0], (torch.arange(b) == 0).long())):
            text = F.normalize(text, dim=1)
            total = total + F.cross_entropy(torch.cat([mom @ text.T, oth @ text.T], 1), cls)
        pick = (m[:, :1] @ frames.transpose(1, 2)).squeeze(1).sigmoid()
        total = total + (F.binary_cross_entropy(pick, relevant.float(), reduction="none") * mask).mean()
        kl = F.kl_div(torch.log(o["w"] + 1e-6), similarity.softmax(-1).detach(), reduction="none").mean(2)
        total = total + (kl * relevant).sum() / relevant.sum()
        for t in (o["dummy"], self.prompt[None]):
            t = t / t.norm(dim=2, keepdim=True)
            total = total + ((t @ t.transpose(1, 2).detach()) * (1 - torch.eye(t.shape[1]))).abs().mean()
        return 0.05 * total


def giou(a, b):
    a0, a1 = a[..., 0] - a[..., 1] / 2, a[..., 0] + a[..., 1] / 2
    b0, b1 = b[..., 0] - b[..., 1] / 2, b[..., 0] + b[..., 1] / 2
    inter = (torch.min(a1, b1) - torch.max(a0, b0)).clamp(min=0)
    union = a1 - a0 + b1 - b0 - inter
    hull = torch.max(a1, b1) - torch.min(a0, b0)
    return inter / union - (hull - union) / hull


def batch(randn, n, clips, tokens):
    """Inputs of `n` samples and targets: the middle third of every video."""
    inputs = randn(n, clips, 770), torch.ones(n, clips), randn(n, tokens, 4096), torch.ones(n, tokens), randn(n, 4096)
    labels = torch.zeros(n, clips)
    labels[:, clips // 3 : 2 * clips // 3] = 1
    pairs = torch.full((n, 2), clips // 3), torch.zeros(n, 2, dtype=torch.long)
    spans = [torch.tensor([[0.5, 1 / 3]]) for _ in range(n)]
    return inputs, (spans, labels, pairs)
