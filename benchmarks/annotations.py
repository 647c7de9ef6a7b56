"""How fast an annotation file of COCO's size is read, beside pycocotools, and what its loader processes take.

    python benchmarks/annotations.py

Writes a synthetic file like `instances_train2017.json` (118,287 images, 860,001 boxes with polygons; without these with
`--boxes-only`) and hard links for its images, reads it with both in turns, each time in a new process, and prints a
table. Exit code 1: the two do not agree on the boxes, the ratio of processor times is under 5, or the processes take
over 1.5 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES, BOXES, CLASSES = 118_287, 860_001, 80
WIDTH, HEIGHT = 640, 480
LINKS = 30_000  # of a file; file systems allow 65,000 or more
WORKERS = 4
LEAST_RATIO, MOST_BYTES = 5.0, 1.5e9


def write(folder: Path, images: int, boxes: int, polygons: bool) -> Path:
    """The annotation file and its images."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(images):
        own, first = (folder / "images" / f"{n:012d}.jpg" for n in (number, number // LINKS * LINKS))
        if own == first:
            Image.new("RGB", (WIDTH, HEIGHT), (90, 120, number // LINKS)).save(own)
        else:
            os.link(first, own)
    corners = random.uniform(0, 0.7, (boxes, 2)) * [WIDTH, HEIGHT]
    boxes_xywh = np.concatenate([corners, random.uniform(0.01, 0.3, (boxes, 2)) * [WIDTH, HEIGHT]], 1).round(2).tolist()
    of_image, of_class = random.integers(0, images, boxes).tolist(), random.integers(1, CLASSES + 1, boxes).tolist()
    shapes = [[random.uniform(0, WIDTH, 2 * n).round(2).tolist()] for n in random.integers(10, 40, 500)]
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "width": WIDTH, "height": HEIGHT, "license": 1,
             "date_captured": "2013-11-14 17:02:52", "flickr_url": f"http://example.org/{n}.jpg"}
            for n in range(images)
        ],
        "annotations": [
            {"id": 1 + n, "image_id": of_image[n], "category_id": of_class[n], "bbox": boxes_xywh[n],
             "area": round(boxes_xywh[n][2] * boxes_xywh[n][3], 2), "iscrowd": int(n % 100 == 0),
             **({"segmentation": shapes[n % 500]} if polygons else {})}
            for n in range(boxes)
        ],
        "categories": [{"id": n, "name": f"class {n}", "supercategory": "thing"} for n in range(1, CLASSES + 1)],
    }  # fmt: skip
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return path


def read(path: Path, side: str) -> dict[str, float]:
    """Seconds, of the clock and of the processor, and peak memory of one reading; and what was read."""
    if side == "pycocotools":
        from pycocotools.coco import COCO
    else:
        from efficientdet.data.coco import read_coco
    clock, processor = time.perf_counter(), time.process_time()
    if side == "pycocotools":
        with contextlib.redirect_stdout(io.StringIO()):
            found = COCO(str(path))
    else:
        records = read_coco(path)
    seconds = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
    status = Path("/proc/self/status").read_text()  # not getrusage, which begins with the peak of the parent
    peak = float(status.partition("VmHWM:")[2].split()[0])
    if side == "pycocotools":
        images, boxes = len(found.imgs), len(found.anns)
        area = sum(one["bbox"][2] * one["bbox"][3] for one in found.anns.values())
    else:
        corners = records.images.boxes_xyxy.astype(float)  # type: ignore[attr-defined]
        images, boxes = len(records), len(corners)
        area = float(((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])).sum())
    return {**seconds, "peak": 1024 * peak, "images": images, "boxes": boxes, "area": area}


def load(path: Path, start: str) -> dict[str, float]:
    """Bytes that this process and its loader processes take together, pages that they share counted once."""
    import multiprocessing

    from torch.utils.data import DataLoader

    from efficientdet.data.augment import Augmentation
    from efficientdet.data.coco import read_coco
    from efficientdet.data.dataset import DetectionDataset, EpochBatches, collate
    from efficientdet.images.letterbox import IMAGENET

    records = read_coco(path)
    dataset = DetectionDataset(records, (320, 320), IMAGENET, Augmentation((0.5, 1.5), 0.5), cache=False)
    batches = EpochBatches(records, 8, 0)
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=WORKERS, collate_fn=collate, multiprocessing_context=start
    )
    iterator = iter(loader)
    for _ in range(4 * WORKERS):
        next(iterator)
    pids = [child.pid for child in multiprocessing.active_children()]
    workers = sum(_proportional(pid) for pid in pids if pid is not None)
    return {"workers": workers, "all": workers + _proportional(os.getpid()), "processes": len(pids)}


def _proportional(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))


def in_new_process(path: Path, *words: str) -> dict[str, float]:
    """What another process of this program prints."""
    command = [sys.executable, __file__, "--file", str(path), *words]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def compare(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """The lines to print; raises SystemExit(1) where something does not hold."""
    path = write(folder, options.images, options.boxes, not options.boxes_only)
    sides, rounds = ("efficientdet", "pycocotools"), range(options.rounds)
    runs = [{side: in_new_process(path, "--read", side) for side in sides} for _ in rounds]
    for run in runs:
        ours, theirs = run["efficientdet"], run["pycocotools"]
        counts = [(one["images"], one["boxes"]) for one in (ours, theirs)]
        if counts[0] != counts[1] or abs(ours["area"] / theirs["area"] - 1) > 1e-5:
            raise SystemExit(f"the two read something else: {ours} and {theirs}")
    what = f"{options.images} images, {options.boxes} boxes, {path.stat().st_size / 1e6:.0f} MB"
    yield f"{what}; {_processor()}; median of {options.rounds} rounds"
    yield "| | seconds | processor seconds | peak memory, MB |"
    yield "|---|---:|---:|---:|"
    for side in sides:
        middle = {name: statistics.median(run[side][name] for run in runs) for name in ("clock", "processor", "peak")}
        yield f"| {side} | {middle['clock']:.2f} | {middle['processor']:.2f} | {middle['peak'] / 1e6:.0f} |"
    ratios = {
        name: statistics.median(run["pycocotools"][name] / run["efficientdet"][name] for run in runs)
        for name in ("clock", "processor")
    }
    yield f"ratio: {ratios['clock']:.1f} by the clock, {ratios['processor']:.1f} by the processor"
    memory = {start: in_new_process(path, "--load", start) for start in ("fork", "spawn")}
    for start, found in memory.items():
        size = f"{found['workers'] / 1e6:.0f} MB, with their parent {found['all'] / 1e6:.0f} MB"
        yield f"{found['processes']:.0f} loader processes ({start}): {size}"
    if ratios["processor"] < LEAST_RATIO or any(found["all"] > MOST_BYTES for found in memory.values()):
        raise SystemExit(1)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--boxes", type=int, default=BOXES)
    parser.add_argument("--boxes-only", action="store_true")
    for name in ("--file", "--read", "--load"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        path = Path(options.file)
        print(json.dumps(read(path, options.read) if options.read else load(path, options.load)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for line in compare(Path(folder), options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
