#!/usr/bin/env python3
"""Makes the parity fixture `sam2_hf_video` from Hugging Face's Sam2VideoModel with random weights.

It covers what the fixtures of VideoChat-TPO do not: SAM 2.1 (time encodings of object pointers,
the vector of hidden objects), points and boxes, two objects, prompts on two frames, both
directions. Memories are kept in float32 here; Hugging Face rounds them to bfloat16. Holes are not
filled there.

    python tools/make_sam2_video_fixture.py tests/fixtures
"""

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import Sam2VideoConfig
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig
from transformers.models.sam2_video import modeling_sam2_video as hf
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)

SIDE, FRAMES, SIZE, LOW = 64, 9, [40, 56], 8


def patch(cls, name, old, new):
    """Replaces a piece of a method's source."""
    source = inspect.cleandoc("\n" + inspect.getsource(getattr(cls, name)))
    assert old in source, f"{name} has changed"
    source = source.replace(old, new).replace("super()", f"super({cls.__name__}, self)")
    scope = {}
    exec(compile(source, name, "exec"), hf.__dict__, scope)
    setattr(cls, name, scope[name])


def config():
    trunk = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 6, 3],
        global_attention_blocks=[4],
    )
    vision = Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=32, image_size=SIDE),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=24),
        image_size=SIDE,
        num_maskmem=4,
        max_object_pointers_in_encoder=5,
        memory_attention_hidden_size=32,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=48,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=128,
    )


def main(out):
    # Memories in float32, and of any width.
    patch(hf.Sam2VideoModel, "_encode_new_memory", "torch.bfloat16", "torch.float32")
    patch(hf.Sam2VideoMemoryAttentionLayer, "__init__", "kv_in_dim=64", "kv_in_dim=config.memory_encoder_output_channels")
    torch.manual_seed(2100)
    cfg = config()
    model = hf.Sam2VideoModel(cfg).eval()
    # One tensor in the published models; construction draws two.
    model.shared_image_embedding.positional_embedding = model.prompt_encoder.shared_embedding.positional_embedding
    with torch.no_grad():
        for name, p in model.named_parameters():
            width = p.shape[-1] if p.dim() > 1 else 1
            p.copy_(torch.randn_like(p) * (0.2 if p.dim() == 1 else 1.2 / width**0.5))
        # Memories matter, and objects are hidden on some frames.
        for name, p in model.named_parameters():
            if "memory_attention" in name and "o_proj.weight" in name:
                p.mul_(12.0 if "cross" in name else 2.0)
            if "temporal_positional_encoding_projection" in name:
                p.mul_(3.0)
            if "mask_downsampler.final_conv" in name:
                p.mul_(4.0)
        head = model.mask_decoder.pred_obj_score_head.proj_out
        head.weight.mul_(SCORE_SCALE)
        head.bias.fill_(BIAS)
    low = torch.randn(FRAMES, 3, LOW, LOW)
    frames = low.repeat_interleave(SIDE // LOW, 2).repeat_interleave(SIDE // LOW, 3)
    scale = torch.tensor([SIDE / SIZE[1], SIDE / SIZE[0]])
    tensors, runs = {"in.frames_lowres": low}, []
    # Per run: prompts (frame, object, box or none, points with labels), and where it goes.
    plans = [
        ("one", [(2, 1, None, [[20.0, 15.0, 1]])], False, None),
        ("many", [(1, 5, [8.0, 6.0, 40.0, 30.0], []), (1, 3, None, [[30.0, 30.0, 1], [5.0, 5.0, 0]])], False, None),
        ("two_prompts", [(0, 1, [8.0, 6.0, 40.0, 30.0], []), (5, 1, [10.0, 4.0, 50.0, 20.0], [])], False, 0),
        ("backward", [(7, 1, [8.0, 6.0, 40.0, 30.0], [[20.0, 20.0, 1]])], True, None),
    ]
    hidden = 0
    with torch.inference_mode():
        for name, prompts, reverse, start in plans:
            session = hf.Sam2VideoInferenceSession(frames, *SIZE, dtype=torch.float32)
            for frame in sorted({p[0] for p in prompts}):
                ids = []
                for _, object_id, box, points in (p for p in prompts if p[0] == frame):
                    index = session.obj_id_to_idx(object_id)
                    coords = [] if box is None else [[box[0], box[1], 2], [box[2], box[3], 3]]
                    coords = torch.tensor(coords + points)
                    session.add_point_inputs(index, frame, {
                        "point_coords": (coords[:, :2] * scale)[None, None],
                        "point_labels": coords[:, 2].int()[None, None],
                    })
                    ids.append(object_id)
                session.obj_with_new_inputs = ids
                prompted = model(session, frame_idx=frame)
                tensors[f"out.{name}.prompt.{frame}"] = prompted.pred_masks[:, 0]
            scores = []
            for got in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                tensors[f"out.{name}.{got.frame_idx}.masks"] = got.pred_masks[:, 0]
                scores.append(got.object_score_logits.reshape(-1))
                hidden += int((got.object_score_logits <= 0).sum())
            tensors[f"mid.{name}.scores"] = torch.stack(scores)
            runs.append({"name": name, "reverse": reverse, "start": start, "prompts": [
                {"frame": f, "object": o, "box": b, "points": p} for f, o, b, p in prompts]})
    print("hidden object frames:", hidden)
    for key, value in model.state_dict().items():
        if key != "shared_image_embedding.positional_embedding":
            tensors[f"w.{key}"] = value
    note = (
        "Sam2VideoModel of Hugging Face transformers, random weights, memories in float32, no hole filling. "
        "Frames are the nearest enlargement of in.frames_lowres to image_size. Prompts are in pixels of video_hw; "
        "labels 1 on, 0 beside the object. out.RUN.prompt.F and out.RUN.F.masks are low-resolution logits, one row "
        "per object in the order of the prompts; mid.RUN.scores are object scores in the order of the run."
    )
    doc = {
        "config": {**json.loads(cfg.to_json_string()), "image_size": SIDE},
        "video_hw": SIZE,
        "runs": runs,
        "semantics": note,
        "tolerance": {"metric": "rel_l2 = ||got-ref||_2 / max(||ref||_2, 1e-7), per tensor", "out": 1e-4, "mid": 1e-3},
        "fixture": "sam2_hf_video",
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "sam2_hf_video.json").write_text(json.dumps(doc, indent=1))
    arrays = {k: np.ascontiguousarray(v.detach().numpy()) for k, v in tensors.items()}
    save_file(arrays, str(out / "sam2_hf_video.safetensors"))


# Scale and bias of the object score that hide objects on some frames with these weights.
SCORE_SCALE, BIAS = 100.0, 6.8

if __name__ == "__main__":
    main(Path(sys.argv[1]))
