"""From records to batches: boxes follow the pixels, and chance follows the seed alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from efficientdet.data import dataset as dataset_module
from efficientdet.data.augment import Augmentation
from efficientdet.data.coco import read_coco
from efficientdet.data.dataset import (
    Batch,
    DecodedCache,
    DetectionDataset,
    EpochBatches,
    TrainLoader,
    collate,
    eval_loader,
    free_memory,
)
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import DataError, ImageError, SettingError
from efficientdet.images.letterbox import IMAGENET, Preprocessing
from efficientdet.inference.hardware import core_count

RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
# Python 3.12 warns when a process with threads is forked; torch's own loader does just that.
FORKS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def write_image(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_records(
    folder: Path | None, count: int, crowds: tuple[int, ...] = (), negatives: tuple[int, ...] = ()
) -> Records:
    """Images of different sizes with a box each (two where there is a crowd beside it)."""
    images = []
    for i in range(count):
        width, height = 40 + 3 * i, 30 + 5 * i
        path = Path(f"{i}.png") if folder is None else folder / f"{i}.png"
        if folder is not None:
            write_image(path, width, height, seed=i)
        boxes = np.array([] if i in negatives else [[4, 6, 24, 16]], dtype=np.float32).reshape(-1, 4)
        n = len(boxes)
        images.append(
            ImageRecord(
                i,
                path,
                width,
                height,
                boxes,
                np.full(n, i % 2, dtype=np.int64),
                np.full(n, i in crowds),
                np.full(n, 200, dtype=np.float32),
                list(range(n)),
            )  # fmt: skip
        )
    return Records(images, ("cat", "dog"), (1, 2), folder or Path("nowhere"))


def with_boxes(records: Records, boxes: Any, labels: Any, is_ignored: Any) -> Records:
    """The first image with other boxes."""
    areas, ids = np.full(len(boxes), 200, dtype=np.float32), list(range(len(boxes)))
    record = replace(records.images[0], boxes_xyxy=boxes, labels=labels, is_ignored=is_ignored)
    return records.of_images([replace(record, areas=areas, annotation_ids=ids)])


# ---- samples
def test_letterboxed_boxes_are_the_originals_times_the_scale(tmp_path: Path) -> None:
    records = make_records(tmp_path, 4)
    dataset = DetectionDataset(records, (48, 64), IMAGENET, cache=False)
    assert len(dataset) == 4
    for i, record in enumerate(records.images):
        sample = dataset[i]
        assert sample.image_index == i
        assert sample.scale == pytest.approx(min(48 / record.height, 64 / record.width))
        assert sample.image.shape == (3, 48, 64) and sample.image.dtype == torch.float32
        np.testing.assert_allclose(sample.boxes_xyxy, record.boxes_xyxy * sample.scale, rtol=1e-6)
        assert sample.boxes_xyxy.dtype == torch.float32 and sample.labels.dtype == torch.int64
        assert sample.labels.tolist() == record.labels.tolist()


def test_ignored_regions_are_apart_from_the_boxes_of_a_sample(tmp_path: Path) -> None:
    records = make_records(tmp_path, 1)
    boxes = np.array([[0, 0, 9, 9], [4, 6, 24, 16]], dtype=np.float32)
    records = with_boxes(records, boxes, np.array([1, 0]), np.array([True, False]))
    dataset = DetectionDataset(records, (32, 32), IMAGENET, Augmentation((1.0, 1.0), 0.0), cache=False)
    for sample in (dataset[0], dataset[0, 3]):
        assert sample.boxes_xyxy.shape == (1, 4) and sample.labels.tolist() == [0]
        torch.testing.assert_close(sample.ignored_xyxy, torch.tensor([[0.0, 0.0, 9.0, 9.0]]) * (32 / 40))
    batch = collate([dataset[0], dataset[0, 3]])
    assert [tuple(regions.shape) for regions in batch.ignored_xyxy] == [(1, 4), (1, 4)]


def test_augmentation_moves_ignored_regions_with_the_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.paste((255, 255, 255), (20, 6, 36, 24))
        image.save(tmp_path / "a.png")
    box = np.array([[20, 6, 36, 24]], dtype=np.float32)
    record = ImageRecord(1, tmp_path / "a.png", 40, 30, box, np.array([-1]), np.array([True]), np.array([1.0]), [1])
    dataset = DetectionDataset(
        Records([record], ("cat",), (1,), tmp_path), (60, 80), RAW, Augmentation((0.5, 2.0), 0.5), cache=False
    )
    for epoch in range(10):
        sample = dataset[0, epoch]
        rows, columns = np.nonzero(sample.image[0].numpy() >= 127.5)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(sample.ignored_xyxy[0], found, atol=1.5)
        assert sample.boxes_xyxy.shape == (0, 4) and sample.labels.shape == (0,)


def test_boxes_of_an_image_with_orientation_lie_where_it_is_seen(tmp_path: Path) -> None:
    # Upright 40 wide, 60 high, white at x 5..15, y 30..55; on disk lying on its side, with EXIF to turn it.
    upright = np.zeros((60, 40, 3), dtype=np.uint8)
    upright[30:55, 5:15] = 255
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 30, 10, 25]}],
        "categories": [{"id": 1, "name": "patch"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    dataset = DetectionDataset(
        read_coco(tmp_path / "train.json"), (120, 120), RAW, Augmentation((0.5, 1.0), 1.0), cache=True
    )
    for sample in (dataset[0], dataset[0], dataset[0, 1]):  # decoded, from the cache, augmented
        rows, columns = np.nonzero(sample.image[0].numpy() >= 127.5)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(sample.boxes_xyxy[0], found, atol=1.5)


def test_augmented_samples_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    records = make_records(tmp_path, 3)

    def dataset(seed: int) -> DetectionDataset:
        return DetectionDataset(records, (48, 48), IMAGENET, Augmentation((0.1, 2.0), 0.5), seed, cache=False)

    first = dataset(0)
    first[1, 5]  # what came before does not matter
    torch.testing.assert_close(first[2, 4].image, dataset(0)[2, 4].image, rtol=0, atol=0)
    for other in (first[2, 5], dataset(1)[2, 4]):
        assert not torch.equal(first[2, 4].image, other.image)
    plain = DetectionDataset(records, (48, 48), IMAGENET, None, cache=False)
    torch.testing.assert_close(plain[2, 4].image, plain[2].image, rtol=0, atol=0)


def test_labels_of_boxes_that_the_crop_drops_go_with_them(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 4, 4], [10, 10, 30, 20], [36, 26, 40, 30]], dtype=np.float32)
    records = with_boxes(make_records(tmp_path, 1), boxes, np.array([0, 1, 0]), np.zeros(3, dtype=np.bool_))
    dataset = DetectionDataset(records, (30, 40), IMAGENET, Augmentation((2.0, 2.0), 0.0), cache=False)
    counts = set()
    for epoch in range(20):
        sample = dataset[0, epoch]
        assert len(sample.labels) == len(sample.boxes_xyxy)
        counts.add(len(sample.labels))
        is_middle = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).amin(1) > 8
        assert bool((sample.labels[is_middle] == 1).all())
    assert min(counts) < 3


# ---- the cache
def drain(loader: Any) -> list[Batch]:
    return list(loader)


@FORKS
@pytest.mark.parametrize("workers", [0, min(2, core_count())])  # torch warns of more than there are cores
def test_the_cache_gives_identical_pixels_in_every_process(tmp_path: Path, workers: int) -> None:
    records = make_records(tmp_path, 6)
    plain = DetectionDataset(records, (48, 48), IMAGENET, Augmentation((0.1, 2.0), 0.5), cache=False)
    cached = DetectionDataset(records, (48, 48), IMAGENET, Augmentation((0.1, 2.0), 0.5), cache=True)

    def augmented(dataset: DetectionDataset, epoch: int, workers: int) -> torch.Tensor:
        batches = EpochBatches(records, 2, seed=0)
        batches.set_epoch(epoch)
        loader = TrainLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)
        return torch.cat([batch.images for batch in loader])

    assert cached.cache is not None
    assert torch.equal(augmented(cached, 0, workers), augmented(plain, 0, 0))
    assert cached.cache.filled.all()  # also by the workers: they share it
    for i in range(6):
        (tmp_path / f"{i}.png").unlink()
        assert cached[i].image.shape == (3, 48, 48)
    again = drain(eval_loader(cached, 4, workers))
    for i in range(6):
        write_image(tmp_path / f"{i}.png", 40 + 3 * i, 30 + 5 * i, seed=i)
    expected = drain(eval_loader(plain, 4, 0))
    assert torch.equal(torch.cat([b.images for b in again]), torch.cat([b.images for b in expected]))


def test_images_that_take_too_much_memory_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(None, 2)
    records = records.of_images([replace(records.images[0], width=10**9), records.images[1]])
    assert not DecodedCache.fits(records)
    assert DetectionDataset(records, (32, 32), IMAGENET).cache is None

    def unknown(_: str) -> Any:
        raise OSError("no such folder")

    monkeypatch.setattr(os, "statvfs", unknown)
    assert not DecodedCache.fits(make_records(None, 2))


def test_a_cache_that_shared_memory_has_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "shared_memory", lambda: 1000)
    with pytest.raises(SettingError, match=r"cache: the decoded images need 0\.0 GB .* \(--no-cache\)"):
        DetectionDataset(make_records(None, 2), (32, 32), IMAGENET, cache=True)


@pytest.mark.parametrize("cache", [False, True])
def test_an_image_of_another_size_than_when_it_was_read_is_named(tmp_path: Path, cache: bool) -> None:
    dataset = DetectionDataset(
        make_records(tmp_path, 2), (48, 48), IMAGENET, Augmentation((1.0, 1.0), 0.0), cache=cache
    )
    write_image(tmp_path / "1.png", 99, 7)
    assert dataset[0].image.shape == dataset[0, 1].image.shape == (3, 48, 48)
    for key in (1, (1, 0)):
        with pytest.raises(ImageError, match=r"1\.png: 99x7 pixels, but 43x35 when the dataset was read"):
            dataset[key]


CGROUPS = {
    "v2, a limit above": ("0::/job/step\n", {"job": (500, 300, 20), "job/step": ("max", 250, 10)}, 220),
    "v2, the nearest limit": ("0::/job/step\n", {"job": (500, 300, 20), "job/step": (310, 250, 10)}, 70),
    "v2, a container": ("0::/host/container\n", {"": (400, 390, 0)}, 10),
    "v2, over its limit": ("0::/\n", {"": (400, 500, 0)}, 0),
    "v1": ("9:cpu:/a\n4:cpu,memory:/job\n0::/\n", {"job": (500, 100, 50)}, 450),
    "no limit": ("0::/\n", {"": ("max", 5, 5)}, None),
    "no memory controller": ("1:cpu:/\n", {}, None),
    "no cgroups": (None, {}, None),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_free_memory_is_within_the_limits_of_the_cgroups(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, limits, expected = CGROUPS[case]
    v1 = case == "v1"
    files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    for name, (limit, used, cached) in limits.items():
        folder = tmp_path / ("memory" if v1 else "") / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in zip(files, (limit, used), strict=True):
            (folder / file).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{'total_' if v1 else ''}inactive_file {cached}\n")
    if names is not None:
        (tmp_path / "cgroup").write_text(names)
    monkeypatch.setattr(dataset_module, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(dataset_module, "CGROUP_ROOT", tmp_path)
    if expected is not None:
        assert free_memory() == expected
        assert not DecodedCache.fits(make_records(None, 1))
    else:
        assert free_memory() > 10**6


# ---- batches
def test_a_batch_holds_its_samples(tmp_path: Path) -> None:
    records = make_records(tmp_path, 5, negatives=(3,))
    loader = eval_loader(DetectionDataset(records, (32, 48), IMAGENET, cache=False), 2, 0)
    batches = drain(loader)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    second = batches[1]
    assert second.images.shape == (2, 3, 32, 48)
    assert [tuple(boxes.shape) for boxes in second.boxes_xyxy] == [(1, 4), (0, 4)]
    assert [labels.tolist() for labels in second.labels] == [[0], []]
    assert second.scales.dtype == torch.float32
    assert second.scales.tolist() == pytest.approx([min(32 / 40, 48 / 46), min(32 / 45, 48 / 49)])


@pytest.mark.parametrize(("images", "devices"), [(5, 2), (4, 2), (2, 2), (1, 2), (7, 3)])
def test_devices_share_an_evaluation_and_none_is_idle(images: int, devices: int) -> None:
    dataset = DetectionDataset(make_records(None, images), (32, 32), IMAGENET, cache=False)
    shares = [list(eval_loader(dataset, 2, 0, rank, devices).sampler) for rank in range(devices)]
    assert all(shares)
    assert sorted(set(sum(shares, []))) == list(range(images))
    if images >= devices:
        assert sum(map(len, shares)) == images


def indices(batches: EpochBatches) -> list[list[int]]:
    return [[index for index, _ in batch] for batch in batches]


def test_images_of_crowds_alone_are_left_out_and_negatives_are_in() -> None:
    batches = EpochBatches(make_records(None, 6, crowds=(1, 4), negatives=(2,)), 1, seed=0)
    assert sorted(sum(indices(batches), [])) == [0, 2, 3, 5]
    assert len(batches) == 4


def test_the_order_follows_seed_and_epoch_and_is_told_with_each_image() -> None:
    records = make_records(None, 20)

    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        batches = EpochBatches(records, 4, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert len({str([[i for i, _ in batch] for batch in order(*key)]) for key in ((0, 0), (0, 1), (1, 0))}) == 3
    assert {epoch for batch in order(0, 7) for _, epoch in batch} == {7}


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_a_start_in_the_middle_gives_the_rest_once(start: int) -> None:
    batches = EpochBatches(make_records(None, 21), 4, seed=3)
    whole = list(batches)
    batches.start = start
    assert list(batches) == whole[start:]
    assert list(batches) == whole
    assert len(batches) == len(whole) == 5


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
def test_ranks_share_an_epoch_without_overlap(images: int, batch_size: int, world: int, epoch: int) -> None:
    records = make_records(None, images)
    if images < world:
        with pytest.raises(DataError, match=f"{images} images .* {world} devices"):
            EpochBatches(records, batch_size, 0, 0, world)
        return
    ranks = [EpochBatches(records, batch_size, 0, rank, world) for rank in range(world)]
    for rank in ranks:
        rank.set_epoch(epoch)
    shares = [indices(rank) for rank in ranks]
    everything = [index for share in shares for batch in share for index in batch]
    assert len(set(everything)) == len(everything)
    assert all(len(share) == len(ranks[0]) for share in shares)  # each makes the same number of steps
    assert all(batch for share in shares for batch in share)
    if images >= batch_size * world:
        assert len(everything) == images // (batch_size * world) * batch_size * world
        assert all(len(batch) == batch_size for share in shares for batch in share)
    else:
        assert len(everything) == images


def test_nothing_but_crowds_is_an_error() -> None:
    with pytest.raises(DataError, match="nowhere: no image to train on; all 2 hold ignored regions only"):
        EpochBatches(make_records(None, 2, crowds=(0, 1)), 1, seed=0)


@pytest.mark.filterwarnings("ignore")
def test_lightning_gives_every_epoch_its_own_order_and_augmentation(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    records = make_records(tmp_path, 6)
    dataset = DetectionDataset(records, (32, 32), IMAGENET, Augmentation((0.1, 2.0), 0.5), cache=False)
    seen: list[tuple[int, Batch]] = []

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def train_dataloader(self) -> DataLoader[Any]:
            return TrainLoader(dataset, batch_sampler=EpochBatches(records, 2, seed=0), collate_fn=collate)

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            seen.append((self.current_epoch, batch))
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    lightning.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    ).fit(Module())  # fmt: skip

    epochs = [[batch for epoch, batch in seen if epoch == number] for number in range(3)]
    orders = [torch.cat([batch.indices for batch in epoch]).tolist() for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(6))] * 3
    assert len(set(map(tuple, orders))) > 1
    images = [
        torch.cat([batch.images for batch in epoch])[order.index(0)]
        for epoch, order in zip(epochs, orders, strict=True)
    ]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
