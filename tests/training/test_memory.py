"""Freed memory stays with the process while a run lasts, and goes back to the system after it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from efficientdet.training import memory
from efficientdet.training.memory import kept_memory

MEGABYTES = 64
PROGRAM = f"""
import resource, torch
from efficientdet.training.memory import kept_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

print(faults({MEGABYTES} // 2))
start = resident()
with kept_memory():
    faults({MEGABYTES})
    print(faults({MEGABYTES} // 2), resident() - start)
print(resident() - start)
"""


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory"
)
def test_memory_is_kept_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, within, grown, after = map(float, done.stdout.split())
    assert within < 0.1 * without
    assert grown > 0.9 * MEGABYTES
    assert after < 0.2 * MEGABYTES


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")  # type: ignore[attr-defined]
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # type: ignore[attr-defined]
    with kept_memory():
        assert torch.ones(3).sum() == 3
