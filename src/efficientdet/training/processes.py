"""A process for each device of a run: that of the first device is the caller's, and starts the others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

from efficientdet.errors import EfficientDetError, SettingError

JOIN = "from efficientdet.training.run import join_run; join_run()"
# Seconds that the other processes have to end once this one has.
PATIENCE = 60
# Seconds in which a process that has failed ends.
MOMENT = 5


@contextmanager
def other_processes(job: Any, devices: int) -> Iterator[None]:
    """Within this context, processes for all devices but the first run `join_run`.

    Lightning finds them by the environment that is set here.

    Args:
        job: what they receive; it must be picklable.
        devices: number of devices of the run.

    Raises:
        EfficientDetError: of another process, or SettingError if one has died, where that ended this one's work.
    """
    if devices == 1:
        yield
        return
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    threads = torch.get_num_threads()
    share = max(1, threads // devices)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    others = [_start(job, common | {"LOCAL_RANK": str(rank)}, share) for rank in range(1, devices)]
    torch.set_num_threads(share)
    try:
        for rank, other in enumerate(others, start=1):
            _raise_answer(other, rank)  # when it is ready
        with _environment(common | {"LOCAL_RANK": "0"}):
            yield
        for other in others:
            with suppress(subprocess.TimeoutExpired):
                other.wait(PATIENCE)
    except RuntimeError:  # such as a lost connection; another process may know more
        for rank, other in enumerate(others, start=1):
            with suppress(subprocess.TimeoutExpired):
                other.wait(MOMENT)
                _raise_answer(other, rank)
        raise
    finally:
        for other in others:
            other.kill()
            other.communicate()
        torch.set_num_threads(threads)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _start(job: Any, environment: Mapping[str, str], threads: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, sys.path))
    own = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", JOIN], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # its end is noticed where its answer is awaited
        pickle.dump(job, process.stdin)
        process.stdin.flush()  # left open: where it ends, this process has died
    return process


def _raise_answer(process: subprocess.Popen[bytes], rank: int) -> None:
    """Wait for the next answer of a process: that it is ready, or its error, which is raised."""
    assert process.stdout is not None
    try:
        error: EfficientDetError | None = pickle.load(process.stdout)
    except EOFError:
        code = process.wait(PATIENCE)
        if code == 0:
            return
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        error = SettingError(f"the process of device {rank} {how}; resume the run from its last save")
    if error is not None:
        raise error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def joining() -> Iterator[tuple[Any, Callable[[], None]]]:
    """In one of the other processes: the job, and what to call when ready to begin.

    An error within the context is sent to the first process.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not mix with the answers

    def answer(error: EfficientDetError | None = None) -> None:
        pickle.dump(error, answers)
        answers.flush()

    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        yield job, answer
    except EfficientDetError as error:
        answer(error)
        sys.exit(1)


def _end_with_the_first() -> None:
    os.read(0, 1)
    os._exit(1)
