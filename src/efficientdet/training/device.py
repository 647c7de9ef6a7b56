"""Where a run computes, in which precision, and how many processes load its images."""

from __future__ import annotations

import platform

import torch

from efficientdet.errors import SettingError
from efficientdet.inference.hardware import core_count
from efficientdet.training.config import TrainConfig

# Precision by Lightning's names.
LIGHTNING_PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
MOST_WORKERS = 8


def choose_device(config: TrainConfig, machines: int = 1) -> str:
    """`cpu`, `cuda` or `mps`.

    Args:
        config: the settings.
        machines: number of machines that share the devices.

    Raises:
        SettingError: this machine has too few such devices (of a CPU, cores), or a CPU would have to compute in fp16.
    """
    device: str = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = {
        "cpu": core_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cuda": torch.cuda.device_count(),
    }
    wanted = config.devices // machines
    if wanted > there[device]:
        raise SettingError(
            f"device {device} with devices {wanted}: this machine has {there[device]}; choose fewer, or another"
        )
    if config.precision == "fp16" and device == "cpu":
        raise SettingError("precision fp16 needs a GPU, and there is none here; use bf16 or fp32")
    return device


def choose_precision(precision: str, device: str) -> str:
    """The precision of a run: `auto` is bf16 where the device computes in it, else fp16 on an NVIDIA GPU, else fp32.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`; all but `auto` are returned as they are.
        device: `cpu`, `cuda` or `mps`.

    Returns:
        `fp32`, `bf16` or `fp16`.
    """
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and _cpu_has_bfloat16() else "fp32"


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; emulated, it is slower than float32."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_workers(workers: int | None, device: str) -> int:
    """Number of processes that load images: by default none on a CPU, which has no core to spare.

    Beside a GPU a core less than this process may use, for torch warns of more.
    """
    if workers is not None:
        return workers
    return 0 if device == "cpu" else min(MOST_WORKERS, max(1, core_count() - 1))
