"""Records to batches: read, augment or letterbox, collate. The same seed gives the same batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientdet.data.augment import Augmentation, augment
from efficientdet.data.records import ImageRecord, Records
from efficientdet.errors import DataError, ImageError, SettingError
from efficientdet.images.convert import RgbImage
from efficientdet.images.letterbox import Preprocessing, letterbox
from efficientdet.images.read import read

# Decoded images are kept in memory if they take less than this share of what is free.
CACHE_SHARE = 0.3
# Where Linux tells the cgroups of this process, and their limits.
CGROUPS, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Sample(NamedTuple):
    """One image as the network takes it.

    Attributes:
        image: (3, H, W) float32, normalized and padded.
        boxes_xyxy: (N, 4) float32, pixels of the network's input; without the ignored regions.
        labels: (N,) int64.
        ignored_xyxy: (M, 4) float32, ignored regions in the same pixels.
        scale: network pixels per original pixel; without meaning after augmentation.
        image_index: of the image in the records.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    ignored_xyxy: Tensor
    scale: float
    image_index: int


class Batch(NamedTuple):
    """Samples of one size, put together.

    Attributes:
        images: (B, 3, H, W) float32.
        boxes_xyxy: B tensors (N_i, 4) float32, pixels of the network's input.
        labels: B tensors (N_i,) int64.
        ignored_xyxy: B tensors (M_i, 4) float32, ignored regions in the same pixels.
        scales: (B,) float32, network pixels per original pixel.
        indices: (B,) int64, of the images in the records.
    """

    images: Tensor
    boxes_xyxy: list[Tensor]
    labels: list[Tensor]
    ignored_xyxy: list[Tensor]
    scales: Tensor
    indices: Tensor


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples."""
    return Batch(
        torch.stack([sample.image for sample in samples]),
        [sample.boxes_xyxy for sample in samples],
        [sample.labels for sample in samples],
        [sample.ignored_xyxy for sample in samples],
        torch.tensor([sample.scale for sample in samples]),
        torch.tensor([sample.image_index for sample in samples]),
    )


def decode(record: ImageRecord) -> RgbImage:
    """(H, W, 3) uint8 RGB of a record's image.

    Raises:
        ImageError: it cannot be read, or has another size than the dataset says.
    """
    image = read(record.path)
    if image.shape[:2] != record.image_size:
        raise ImageError(
            f"{record.path}: {image.shape[1]}x{image.shape[0]} pixels, but {record.width}x{record.height} when the "
            "dataset was read; leave its images alone while they are in use"
        )
    return image


def free_memory() -> int:
    """Bytes of memory that this process can still take: what the system has free, within the limits of its cgroups.

    Raises:
        OSError, ValueError, AttributeError: the system does not tell.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_left_by_cgroups()])


def shared_memory() -> int:
    """Bytes of shared memory that are free.

    Raises:
        OSError, AttributeError: the system does not tell.
    """
    shared = os.statvfs("/dev/shm")
    return shared.f_bavail * shared.f_frsize


def _left_by_cgroups() -> Iterator[int]:
    """Bytes that each memory limit above this process leaves; containers have such limits."""
    lines = CGROUPS.read_text().splitlines() if CGROUPS.exists() else []
    for _, controllers, name in (line.split(":", 2) for line in lines):
        if controllers == "":
            root, (limit, used, cache) = CGROUP_ROOT, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = CGROUP_ROOT / "memory"
            limit, used, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = root / name.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                break
            with suppress(OSError, ValueError):  # not a folder of this container's, or no limit: "max"
                room = int((place / limit).read_text()) - int((place / used).read_text())
                statistics = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                yield max(0, room + int(statistics.get(cache, 0)))


class DecodedCache:
    """Decoded images, kept from their first reading in memory that all loader processes share.

    Raises:
        SettingError: they need more shared memory than is free.
    """

    def __init__(self, records: Records) -> None:
        self.starts = np.concatenate([[0], np.cumsum(3 * records.table.sizes.prod(1))])
        needed, room = int(self.starts[-1]), np.inf
        with suppress(AttributeError, OSError):  # a system without it
            room = shared_memory()
        if needed > room:  # writing to what is not there would kill the process without a word
            raise SettingError(
                f"{records.source}: cache: the decoded images need {needed / 1e9:.1f} GB of shared memory, of which "
                f"{room / 1e9:.1f} GB are free; train without it (--no-cache)"
            )
        self.pixels = torch.empty(int(self.starts[-1]), dtype=torch.uint8)
        self.filled = torch.zeros(len(records), dtype=torch.bool)
        for tensor in (self.pixels, self.filled):
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    @staticmethod
    def fits(records: Records) -> bool:
        """Whether the decoded images take a modest share of the free memory; never where that is unknown."""
        try:
            free = min(free_memory(), shared_memory())
        except (AttributeError, OSError, ValueError):
            return False
        return int(3 * records.table.sizes.prod(1).sum()) < CACHE_SHARE * free

    def read(self, index: int, records: Records) -> RgbImage:
        """(H, W, 3) uint8 RGB: decoded, or from memory."""
        record = records.images[index]
        flat: RgbImage = self.pixels[self.starts[index] : self.starts[index + 1]].numpy()
        place = flat.reshape(record.height, record.width, 3)
        if not self.filled[index]:
            place[:] = decode(record)
            self.filled[index] = True
        return place


class DetectionDataset(Dataset[Sample]):
    """Samples of a split.

    `dataset[index]` is the letterboxed image. `dataset[index, epoch]` is augmented, which depends on the seed, the
    epoch and the index alone, in whatever process.

    Args:
        records: the split.
        size: (height, width) of the network's input.
        preprocessing: how pixels become numbers.
        augmentation: of `dataset[index, epoch]`; None letterboxes.
        seed: of the augmentation.
        cache: keep decoded images in memory; None: if they fit.
    """

    def __init__(
        self, records: Records, size: tuple[int, int], preprocessing: Preprocessing,
        augmentation: Augmentation | None = None, seed: int = 0, cache: bool | None = None,
    ) -> None:  # fmt: skip
        self.records = records
        self.size = size
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed
        cache = DecodedCache.fits(records) if cache is None else cache
        self.cache = DecodedCache(records) if cache else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One sample; see the class."""
        index, epoch = key if isinstance(key, tuple) else (key, None)
        record = self.records.images[index]
        image = self.cache.read(index, self.records) if self.cache else decode(record)
        boxes, labels, is_ignored = record.boxes_xyxy, record.labels, record.is_ignored
        scale = 1.0
        pixels: NDArray[np.float32]
        if epoch is None or self.augmentation is None:
            pixels, scale = letterbox(image, self.size, self.preprocessing)
            boxes = boxes * np.float32(scale)
        else:
            random = np.random.default_rng((self.seed, epoch, index))
            pixels, boxes, kept = augment(image, boxes, self.size, self.preprocessing, self.augmentation, random)
            labels, is_ignored = labels[kept], is_ignored[kept]
        objects, regions = torch.from_numpy(boxes[~is_ignored]), torch.from_numpy(boxes[is_ignored])
        return Sample(
            torch.from_numpy(pixels), objects, torch.from_numpy(labels[~is_ignored]), regions, scale, index
        )  # fmt: skip


def usable_images(records: Records) -> list[int]:
    """Indices of the images to train on: all but those whose objects are all ignored, which are no negatives either."""
    return [
        index for index, image in enumerate(records.images) if image.is_negative or not bool(image.is_ignored.all())
    ]  # fmt: skip


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, epoch), shuffled each epoch by the seed alone; can start in the middle of an epoch.

    Images whose objects are all ignored are left out (see `usable_images`). The last step of an epoch is dropped if it
    is not full, unless it is the only one. A step is made of the same images whether they come in one batch or in
    several that are accumulated.

    Args:
        records: the split.
        batch_size: images of a batch on each device.
        seed: of the order.
        rank: number of this device.
        world_size: number of devices that share the epoch.
        accumulate: batches of a step.
    """

    def __init__(
        self, records: Records, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> None:
        self.usable = usable_images(records)
        if not self.usable:
            raise DataError(f"{records.source}: no image to train on; all {len(records)} hold ignored regions only")
        if len(self.usable) < world_size:
            raise DataError(
                f"{records.source}: {len(self.usable)} images to train on are too few for {world_size} devices"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.epoch = 0
        self.start = 0
        # Lightning calls `set_epoch` on the sampler of a batch sampler, not on the batch sampler; so this is both.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a full epoch on each device."""
        whole = self.batch_size * self.world_size
        return len(self.usable) // (whole * self.accumulate) * self.accumulate or max(1, len(self.usable) // whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """The epoch's batches from `start` on; the next epoch starts at 0."""
        start, self.start = self.start, 0
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.usable).tolist()
        whole = self.batch_size * self.world_size
        for batch in range(start, len(self)):
            mine = order[batch * whole : (batch + 1) * whole][self.rank :: self.world_size]
            yield [(index, self.epoch) for index in mine]


class TrainLoader(DataLoader[Sample]):
    """A loader over `EpochBatches`.

    Lightning resumes in the middle of an epoch only with a loader that has a state; here the number of the batch, which
    Lightning saves itself, is all there is.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing; see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing; see the class."""


def eval_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader[Sample]:
    """Letterboxed samples in order: the share of device `rank`, or all of them if a share would be empty."""
    every = range(len(dataset))
    share = every[rank::world_size] if len(dataset) >= world_size else every
    return DataLoader(
        dataset, batch_size, sampler=share, num_workers=workers, collate_fn=collate, worker_init_fn=ignore_interrupts
    )


def ignore_interrupts(worker: int) -> None:
    """In a loader process: leave Ctrl-C, which all processes of a terminal get, to the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
