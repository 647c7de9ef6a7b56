"""Which number format a run computes in, by what the device is good at."""

from __future__ import annotations

import platform

import torch

# Lightning's words.
LIGHTNING_PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def choose_precision(precision: str, accelerator: str) -> str:
    """`auto` made definite: bf16 where the device computes in it, else fp16 on a GPU of NVIDIA's, else fp32.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`; all but `auto` are returned as they are.
        accelerator: `cpu`, `cuda` or `mps`.

    Returns:
        `fp32`, `bf16` or `fp16`.
    """
    if precision != "auto":
        return precision
    if accelerator == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if accelerator == "cpu" and _cpu_has_bfloat16() else "fp32"


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for it; without, it is emulated and slower than float32."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
