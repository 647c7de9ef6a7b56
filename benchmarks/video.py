"""Frames per second of a video through `Detector.stream`, beside its network alone on ready inputs.

    python benchmarks/video.py clip.mp4 --weights people

The two take turns. Exit code 1: the median ratio is under 0.85.
"""

from __future__ import annotations

import argparse
import statistics
import time

from ours import network_alone

from efficientdet.inference.detector import BATCH_SIZE, load

LEAST_RATIO = 0.85


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--weights", default="people")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    detector = load(options.weights, device="cpu")
    network, each = network_alone(detector, BATCH_SIZE)
    frames = sum(1 for _ in detector.stream(options.clip))
    some = max(frames // 4 // each, 1) * each
    network(some)
    ratios = []
    for _ in range(options.rounds):
        before, start = network(some), time.perf_counter()
        for _ in detector.stream(options.clip):
            pass
        rate = frames / (time.perf_counter() - start)
        own = 2000 / (before + network(some))  # from milliseconds an image, on both sides of it
        ratios.append(rate / own)
        print(f"{rate:.1f} frames/s, the network alone {own:.1f} ({detector.engine})", flush=True)
    ratio = statistics.median(ratios)
    print(f"{frames} frames: {ratio:.0%} of the network's own rate")
    if ratio < LEAST_RATIO:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
