"""The choice of a precision, on processors and GPUs that are not there."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from efficientdet.training import device
from efficientdet.training.device import choose_precision, choose_workers


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("chosen", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken(chosen: str, accelerator: str) -> None:
    assert choose_precision(chosen, accelerator) == chosen


@pytest.mark.parametrize(("is_supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bfloat16_takes_float16(
    is_supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return is_supported or including_emulation  # a GPU that only emulates it says that it has it

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", "cuda") == expected


@pytest.mark.parametrize(
    ("machine", "has", "expected"),
    [
        ("x86_64", {"avx512": True}, "bf16"), ("AMD64", {"amx": True}, "bf16"), ("x86_64", {}, "fp32"),
        ("x86_64", {"onednn": True}, "fp32"), ("aarch64", {"onednn": True}, "bf16"), ("arm64", {}, "fp32"),
        ("x86_64", {"avx512": True, "library": False}, "fp32"),
    ],
)  # fmt: skip
def test_a_cpu_takes_bfloat16_where_it_has_instructions_for_it(
    machine: str, has: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(name: str, default: bool = False) -> Any:
        return lambda: has.get(name, default)

    monkeypatch.setattr(device.platform, "machine", lambda: machine)  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", answer("library", True))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", answer("avx512"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", answer("amx"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", answer("onednn"))
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("auto", "mps") == "fp32"


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (4, 3), (64, 8)])
def test_loader_processes_suit_the_cores_that_this_process_may_use(
    cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert choose_workers(None, "cuda") == expected
    assert choose_workers(None, "cpu") == 0
    assert choose_workers(5, "cuda") == choose_workers(5, "cpu") == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, of more processes than cores
        DataLoader(range(8), num_workers=choose_workers(None, "cuda"))  # type: ignore[arg-type]
