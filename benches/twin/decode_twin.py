# /// script
# requires-python = ">=3.10"
# dependencies = ["decord==0.6.0", "numpy"]
# ///
"""Python twin of `cargo bench -p tpo-data --bench decode`: opens a video with decord and reads
its 16 middle frames.

    pip install decord==0.6.0 numpy
    python benches/twin/decode_twin.py assets/bouncing_shapes.mp4 [THREADS] [REPETITIONS]
"""

import statistics
import sys
import time

import numpy as np
from decord import VideoReader, cpu


def read(path, threads):
    reader = VideoReader(path, ctx=cpu(0), num_threads=threads)
    bounds = np.linspace(0, len(reader), 17).astype(int)
    indices = [(a + b - 1) // 2 for a, b in zip(bounds[:-1], bounds[1:])]
    return reader.get_batch(indices).asnumpy()


def main():
    path = sys.argv[1]
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    repetitions = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    read(path, threads)
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        read(path, threads)
        times.append((time.perf_counter() - start) * 1e3)
    print(
        f"decode_16_middle, {threads} threads: fastest {min(times):.1f} ms, "
        f"median {statistics.median(times):.1f} ms, slowest {max(times):.1f} ms"
    )


if __name__ == "__main__":
    main()
