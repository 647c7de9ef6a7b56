"""The batch size: found by trying where it is `auto`, and halved where memory runs out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console

from efficientdet.data.dataset import EpochBatches, collate, free_memory
from efficientdet.errors import SettingError
from efficientdet.training.config import TrainConfig
from efficientdet.training.device import choose_device, choose_precision
from efficientdet.training.prepare import Job, Splits, prepare

if TYPE_CHECKING:
    from efficientdet.training.module import DetectionModule

# Larger batches than these are no faster; the learning rate of larger ones is less well known.
LARGEST_ON_GPU, LARGEST_ON_CPU = 64, 16
# Where the free memory is not known.
FALLBACK = 8
# Share of the free memory that a step may take, and what it takes in multiples of what autograd saves.
MEMORY_SHARE, WHOLE_STEP = 0.6, 2.5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system, had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def halved(config: TrainConfig, console: Console) -> TrainConfig:
    """The settings with half the batch and twice the batches a step, so that a step sees the same images.

    Raises:
        SettingError: the batch cannot be halved, or the run has several processes.
    """
    size, factor = config.images_at_once, 2
    if config.devices > 1:
        raise SettingError(
            f"out of memory with batch_size {size} on each of {config.devices} devices; start again with "
            f"batch_size {max(1, size // 2)} and accumulate {config.accumulate * 2}"
        )
    while size % factor and factor < size:
        factor += 1
    if size == 1:
        raise SettingError(
            "out of memory with a single image; choose a smaller image_size or model, or use gradient_checkpointing"
        )
    smaller = dataclasses.replace(
        config, batch_size=size // factor, accumulate=config.accumulate * factor,
        batch_norm="frozen" if config.freezes_batch_norm() else "train",  # auto could mean another in smaller batches
    )  # fmt: skip
    console.print(
        f"out of memory in batches of {size} images: going on with batch_size {smaller.batch_size} and accumulate "
        f"{smaller.accumulate}"
    )
    return smaller


def find_batch_size(job: Job, splits: Splits) -> int:
    """The batch size for `auto`: the largest power of two that fits the memory, within limits.

    On a GPU, steps are tried; on a CPU, where too much would end the process, the memory of one step is computed.
    """
    device = choose_device(job.config)
    images = len(EpochBatches(splits.train, 1, job.config.seed).usable) // job.config.devices
    if device == "cpu":
        try:
            free = free_memory() / job.config.devices
        except (OSError, ValueError, AttributeError):
            return min(FALLBACK, images)
        per_image = _saved_bytes(job, splits) * WHOLE_STEP
        return _power_of_two(min(LARGEST_ON_CPU, images, int(MEMORY_SHARE * free / max(1.0, per_image))))
    size = 2
    while size * 2 <= min(LARGEST_ON_GPU, images) and _fits(job, splits, size * 2, device):
        size *= 2
    return size


def _power_of_two(limit: int) -> int:
    """The largest power of two up to a limit; at least 2, of which batch norms can take statistics."""
    return int(2 ** max(1, max(1, limit).bit_length() - 1))


def _module(job: Job, splits: Splits, size: int, device: str) -> tuple[DetectionModule, Any]:
    """A module of its own, and a batch for it."""
    config = dataclasses.replace(job.config, batch_size=size, devices=1, cache=False)
    module, _ = prepare(job._replace(config=config), splits, Console(quiet=True))
    indices = next(iter(EpochBatches(splits.train, size, config.seed)))
    samples = [module.train_set[key] for key in (indices * size)[:size]]
    return module.to(device), collate(samples)


def _loss(module: DetectionModule, batch: Any, device: str) -> torch.Tensor:
    precision = choose_precision(module.config.precision, device)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(device, kind, enabled=kind is not None):
        return module.losses(move_data_to_device(batch, torch.device(device))).total


def _saved_bytes(job: Job, splits: Splits) -> float:
    """Bytes that autograd keeps for the backward pass, for each image."""
    module, batch = _module(job, splits, 2, "cpu")
    known = {one.untyped_storage().data_ptr() for one in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _loss(module, batch, "cpu")
    return sum(saved.values()) / len(batch.indices)


def _fits(job: Job, splits: Splits, size: int, device: str) -> bool:
    """Whether a step of a batch size fits the memory, with a tenth left over."""
    try:
        module, batch = _module(job, splits, size, device)
        _loss(module, batch, device).backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return False
    finally:
        module = batch = None  # type: ignore[assignment]
        if device == "cuda":
            torch.cuda.empty_cache()
    return device != "cuda" or torch.cuda.max_memory_allocated() < 0.9 * torch.cuda.mem_get_info()[1]
