"""Run a few torch operations on one core, so that torch's idle threads leave the others to the network's runtime."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def on_one_core() -> Iterator[None]:
    """Run the torch operations of this thread, and of no other, on one core while the block lasts.

    After each parallel operation OpenMP's threads spin for some milliseconds in case another one follows. Between two
    runs of a network in OpenVINO or ONNX Runtime that takes more time than a few small operations gain.
    `torch.set_num_threads` would change other threads too. Where torch has no OpenMP, nothing changes.
    """
    if torch.get_num_threads() == 1:
        yield
        return
    with _libraries().limit(limits=1, user_api="openmp"):
        yield


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries with threads that this process has loaded, torch's among them."""
    return ThreadpoolController()
