#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["av==18.1.0", "numpy==2.4.6", "pillow==13.0.0"]
# ///
"""Makes the sample clip and the small test clips, and what an independent decoder (FFmpeg,
through PyAV) makes of them.

    pip install av==18.1.0 numpy==2.4.6 pillow==13.0.0
    python tools/make_sample_clip.py            # from the root of the repository

Writes
    assets/bouncing_shapes.mp4          4 s, 320x240, 25 fps, H.264 High with B-frames
    tpo-data/tests/data/one_frame.mp4   a single picture
    tpo-data/tests/data/fragmented.mp4  the same pictures as `moof` fragments, 64x48
    tpo-data/tests/data/ten_bit.mp4     High 10 profile, 64x48
    tpo-data/tests/data/interlaced.mp4  interlaced coding (MBAFF), 64x48
    tpo-data/tests/data/full_range.mp4  BT.709, full range, 64x48
    tpo-data/tests/data/mpeg4.avi       MPEG-4 part 2 in AVI, no presentation times
    tpo-data/tests/data/vp9.mkv         VP9 in Matroska
    tpo-data/tests/data/expected.json   per clip: size, times, and mean colour of a 4x4 grid of
                                        every frame
The pictures are drawn by this script; nothing is taken from anywhere else.
"""

import json
import math
import os
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

FPS = 25
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def background(width, height):
    """A checked floor under a sky with a little fixed grain."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = x / width, y / height
    sky = np.stack([150 - 60 * v, 190 - 40 * v, 235 - 30 * v], -1)
    floor_line = 0.62
    depth = np.clip(v - floor_line, 1e-3, None)
    cell = np.floor((u - 0.5) / depth * 0.9) + np.floor(0.35 / depth)
    light = (cell % 2)[..., None]
    floor = np.array([120, 96, 66]) + light * np.array([60, 50, 40])
    picture = np.where((v < floor_line)[..., None], sky, floor)
    # Hills.
    ridge = floor_line - 0.08 - 0.05 * np.sin(7 * u) - 0.02 * np.sin(23 * u + 1)
    picture[(v > ridge) & (v < floor_line)] = [70, 120, 72]
    grain = np.random.default_rng(0).normal(0, 3, (height, width, 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def bounce(t, period, low, high):
    """Height of a ball that hits `high` once per period (y grows downwards)."""
    phase = (t % period) / period
    return high - (high - low) * 4 * phase * (1 - phase)


def frame_at(t, base):
    """The scene at time t (seconds): a red ball bounces to the right, a blue square slides to
    the left and turns, a yellow triangle swings from the top."""
    height, width = base.shape[:2]
    k = 3
    picture = Image.fromarray(base).resize((width * k, height * k), Image.BICUBIC)
    draw = ImageDraw.Draw(picture)
    w, h = width * k, height * k

    # Blue square.
    cx, cy, r = w * (1.05 - 0.26 * t), h * 0.72, h * 0.11
    turn = 0.8 * t
    square = [
        (cx + r * math.cos(turn + i * math.pi / 2), cy + r * math.sin(turn + i * math.pi / 2))
        for i in range(4)
    ]
    draw.polygon(square, fill=(40, 70, 200), outline=(15, 25, 90), width=k * 2)

    # Yellow triangle on a string.
    swing = 0.7 * math.cos(2.2 * t)
    px, py = w * 0.5 + h * 0.45 * math.sin(swing), h * 0.45 * math.cos(swing)
    draw.line([(w * 0.5, 0), (px, py)], fill=(60, 60, 60), width=k * 2)
    s = h * 0.09
    triangle = [(px, py - s), (px - s, py + s * 0.8), (px + s, py + s * 0.8)]
    draw.polygon(triangle, fill=(245, 205, 30), outline=(120, 90, 0), width=k * 2)

    # Red ball with a highlight.
    bx, by, r = w * (0.08 + 0.21 * t), h * bounce(t, 1.0, 0.2, 0.82), h * 0.09
    draw.ellipse([bx - r, by - r, bx + r, by + r], fill=(205, 35, 35), outline=(90, 10, 10), width=k * 2)
    draw.ellipse([bx - r * 0.5, by - r * 0.6, bx - r * 0.1, by - r * 0.2], fill=(255, 190, 190))
    return np.asarray(picture.resize((width, height), Image.LANCZOS))


def encode(name, width, height, frames, options, pix_fmt="yuv420p", container_options=None, tags=None, codec="libx264"):
    path = os.path.join(ROOT, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    base = background(width, height)
    with av.open(path, "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = Fraction(1, FPS)
        preset = {"preset": "slow"} if codec == "libx264" else {}
        stream.options = {"threads": "1", **preset, **options}
        stream.codec_context.thread_count = 1
        space, full = tags or ("ITU601", False)
        for attribute, value in (("colorspace", 1 if space == "ITU709" else 6), ("color_range", 2 if full else 1)):
            setattr(stream.codec_context, attribute, value)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_at(i / FPS, base), format="rgb24")
            frame = frame.reformat(
                format=pix_fmt,
                src_colorspace="ITU709" if space == "ITU709" else "ITU601",
                dst_colorspace=space,
                dst_color_range="JPEG" if full else "MPEG",
                threads=1,
            )
            frame.pts = i
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


def expected(path):
    """Decodes with FFmpeg. `frames`: converted with the textbook formula, chroma repeated.
    `reference`: converted by FFmpeg's default scaler, as decord does (progressive 8-bit
    4:2:0 only: this scaler repeats interlaced chroma by fields, decord does not)."""
    result = {"frames": [], "reference": [], "times": []}
    with av.open(path) as container:
        for frame in container.decode(video=0):
            ten = "10" in frame.format.name
            planes = []
            for i, plane in enumerate(frame.planes):
                dtype = np.uint16 if ten else np.uint8
                rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width]
                planes.append(rows.astype(np.float64) / (4 if ten else 1))
            y, u, v = planes
            u, v = (p.repeat(2, 0).repeat(2, 1)[: y.shape[0], : y.shape[1]] for p in (u, v))
            if frame.color_range == 2:
                y, u, v = y / 255, (u - 128) / 255, (v - 128) / 255
            else:
                y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
            kr, kb = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
            r = y + 2 * (1 - kr) * v
            b = y + 2 * (1 - kb) * u
            g = (y - kr * r - kb * b) / (1 - kr - kb)
            rgb = np.clip(np.stack([r, g, b], -1) * 255, 0, 255)
            h, w = y.shape

            def grid(picture):
                means = picture.reshape(4, h // 4, 4, w // 4, 3).mean((1, 3))
                return np.round(means.reshape(-1), 2).tolist()

            result["frames"].append(grid(rgb))
            if not ten and not frame.interlaced_frame:
                result["reference"].append(grid(frame.to_ndarray(format="rgb24").astype(np.float64)))
            result["times"].append(round(float((frame.pts if frame.pts is not None else len(result["times"])) * frame.time_base), 4))
            result["width"], result["height"] = w, h
    return result


def main():
    gop = "keyint=40:min-keyint=40:scenecut=0"
    small = "bframes=2:b-adapt=0:ref=2"
    data = "tpo-data/tests/data/"
    clips = [
        encode("assets/bouncing_shapes.mp4", 320, 240, 100, {"crf": "24", "profile": "high", "x264-params": f"{gop}:bframes=3:b-adapt=0:b-pyramid=normal:ref=3"}),
        encode(data + "one_frame.mp4", 64, 48, 1, {"crf": "28"}),
        encode(data + "fragmented.mp4", 64, 48, 12, {"crf": "30", "x264-params": f"{small}:keyint=6:min-keyint=6"}, container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        encode(data + "ten_bit.mp4", 64, 48, 6, {"crf": "30", "profile": "high10", "x264-params": small}, pix_fmt="yuv420p10le"),
        encode(data + "interlaced.mp4", 64, 48, 6, {"crf": "30", "x264-params": f"{small}:tff=1"}),
        encode(data + "full_range.mp4", 64, 48, 3, {"crf": "24", "x264-params": f"{small}:colormatrix=bt709:fullrange=on"}, tags=("ITU709", True)),
        encode(data + "mpeg4.avi", 64, 48, 12, {"qscale": "8", "flags": "+bitexact", "g": "5"}, codec="mpeg4"),
        encode(data + "vp9.mkv", 64, 48, 12, {"crf": "40", "b": "0", "g": "5"}, container_options={"fflags": "+bitexact"}, codec="libvpx-vp9"),
    ]
    results = {os.path.basename(p): expected(p) for p in clips}
    with open(os.path.join(ROOT, data, "expected.json"), "w") as f:
        json.dump(results, f, separators=(",", ":"))
        f.write("\n")
    for path in clips:
        r = results[os.path.basename(path)]
        print(f"{path}: {os.path.getsize(path)} bytes, {len(r['frames'])} frames")


if __name__ == "__main__":
    main()
