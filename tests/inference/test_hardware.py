from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from efficientdet.inference import hardware as module
from efficientdet.inference.hardware import FreeCores, Hardware, on_cores


def test_it_says_when_the_machine_was_busy() -> None:
    hardware = Hardware.read()
    idle = dataclasses.replace(hardware, load=0.0)
    busy = dataclasses.replace(hardware, load=hardware.cores * 1.0, cpu="Abacus", flags=("avx2", "avx512_vnni"))
    assert not idle.was_busy and "busy" not in str(idle)
    assert busy.was_busy and "the machine was busy" in str(busy) and "Abacus (avx2, avx512_vnni)" in str(busy)
    plain = json.loads(json.dumps(hardware.to_dict()))
    assert plain["versions"]["torch"] == torch.__version__
    assert plain["cores"] >= 1


def test_a_gpu_is_named_only_where_it_is_measured() -> None:
    assert Hardware.read().gpu is None
    assert (Hardware.read("auto").gpu is not None) == torch.cuda.is_available()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_cores_are_limited_for_this_thread_alone_and_no_longer_than_asked() -> None:
    if not module._openmp():
        pytest.skip("torch has no OpenMP here")
    others: list[int] = []
    with on_cores(3), on_cores(1), on_cores(1), on_cores(2):
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert torch.get_num_threads() == 2 and others == [2]
    with pytest.raises(KeyError), on_cores(1):
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_without_openmp_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_openmp", list)
    with on_cores(1):
        assert torch.get_num_threads() == 2


def test_what_other_processes_use_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds on the clock, seconds of four cores, seconds of this process.
    looks = [(0.0, 100.0, 5.0), (1.0, 104.0, 9.0), (1.05, 104.2, 9.0), (2.0, 107.0, 11.0), (3.0, 111.0, 11.0),
             (4.0, 110.9, 11.0), None]  # fmt: skip
    monkeypatch.setattr(module, "_times", iter(looks).__next__)
    monkeypatch.setattr(module, "core_count", lambda: 4)
    free = FreeCores()
    assert [free() for _ in range(6)] == [
        4,  # all that ran was this process
        4,  # too soon to tell
        3,  # of three busy cores two were this process's
        1,  # the others take all of them
        4,  # counters may go back
        4,
    ]


@pytest.mark.skipif(sys.platform != "linux" or module.core_count() < 2, reason="needs Linux and two cores")
def test_training_beside_other_processes_does_not_spin() -> None:
    """A process for each core computes beside it."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(module.core_count())]
    try:
        look = "import os, efficientdet as ed; ed.train; print(os.environ['GOMP_SPINCOUNT'])"
        found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert found.stdout.strip() == "1000"


@pytest.mark.parametrize(
    ("free", "given", "expected"),
    [(4, {}, None), (3, {}, "1000"), (3, {"GOMP_SPINCOUNT": "7"}, "7"), (3, {"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_training_alone_spins_and_so_it_does_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, free: int, given: dict[str, str], expected: str | None
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(module, "core_count", lambda: 4)
    monkeypatch.setattr(module.FreeCores, "__call__", lambda self: free)
    module.spin_briefly_if_busy()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_the_times_of_the_cores_are_read() -> None:
    before = module._times()
    while os.times().user < 0.05 or (after := module._times()) == before:
        sum(range(10**5))
    assert before is not None and after is not None
    assert all(late >= early for early, late in zip(before, after, strict=True)) and after[2] > 0
    assert after[1] > after[2] > 0  # the cores have worked for others too
