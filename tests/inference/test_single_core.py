"""torch keeps to one core in one thread, for a while, where its OpenMP can be found; nowhere else anything changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from efficientdet.inference import single_core as one_core
from efficientdet.inference.single_core import on_one_core


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_this_thread_alone_and_no_longer_than_asked() -> None:
    if not one_core._libraries().select(user_api="openmp").lib_controllers:
        pytest.skip("torch has no OpenMP here")
    others: list[int] = []
    with on_one_core(), on_one_core():
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert torch.get_num_threads() == 2 and others == [2]
    with pytest.raises(KeyError), on_one_core():
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_without_openmp_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    none = one_core._libraries().select(user_api=[])
    monkeypatch.setattr(one_core, "_libraries", lambda: none)
    with on_one_core():
        assert torch.get_num_threads() == 2
