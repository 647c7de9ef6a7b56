"""The processes of a run on several devices, which Lightning joins: started here, or by torchrun or SLURM."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGTERM, signal
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from efficientdet.errors import EfficientDetError, SettingError, Terminated, sent_error
from efficientdet.stop import Stopped, StopRequest, stop_signals
from efficientdet.text import printable

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

# What torchrun tells each process.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for another; PyTorch's own limits are 10 to 30 minutes.
PATIENCE = timedelta(minutes=10)
# Seconds in which the processes that are left say so, once one of them has ended.
ROLL_CALL = 10


@dataclass(frozen=True)
class Launcher:
    """What has started the processes of a run, one for each device.

    Attributes:
        environment: Lightning's, which knows the place of this process among them.
        devices: number of processes on all machines.
        machines: number of machines.
        name: for messages; none where this package starts them.
    """

    environment: ClusterEnvironment
    devices: int
    machines: int = 1
    name: str = ""


def find_launcher() -> Launcher | None:
    """What this process was started by, together with others; None if it was started alone.

    Raises:
        SettingError: what the launcher tells is incomplete or does not fit; names the variables.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        missing = [name for name in TORCHRUN if name not in os.environ]
        if missing:
            raise SettingError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start with torchrun, "
                "or unset WORLD_SIZE to train in this process alone"
            )
        return _launcher("torchrun", TorchElasticEnvironment(), "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    # Within an allocation's batch script, without srun, there is one process whatever the number of tasks.
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ:
        try:
            environment = SLURMEnvironment(auto_requeue=False)  # the run itself handles the signals
        except RuntimeError as error:
            raise SettingError(f"SLURM: {printable(error)}") from error
        return _launcher("srun", environment, "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
    return None


def _launcher(name: str, environment: ClusterEnvironment, count: str, count_here: str) -> Launcher:
    devices, here = int(os.environ[count]), int(os.environ[count_here])
    if devices % here:
        raise SettingError(
            f"{name} started {devices} processes, {here} of them on this machine; start the same number on each machine"
        )
    return Launcher(environment, devices, devices // here, name)


def is_first_process() -> bool:
    """Whether this process is the first, or the only one, of those that it was started with."""
    launcher = find_launcher()
    return launcher is None or launcher.environment.global_rank() == 0


class Group:
    """The processes of a run, as one of them sees them.

    Args:
        launcher: what started them; None for a process alone.

    Attributes:
        rank: number of this process, from 0.
        machines: number of machines.
        environment: Lightning's.
    """

    def __init__(self, launcher: Launcher | None = None) -> None:
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment

        self.environment: ClusterEnvironment = launcher.environment if launcher else LightningEnvironment()
        self.machines = launcher.machines if launcher else 1
        self.rank = self.environment.global_rank()
        self._waits = launcher is not None

    def share(self, job: Any) -> Any:
        """Pass what the first process gives (the others give None) to all, and return it; the first call alone does.

        Raises:
            EfficientDetError: that is what the first process gives.
        """
        if self._waits:
            self._waits, answer = False, [job]
            distributed.broadcast_object_list(answer, device=torch.device("cpu"))
            job = answer[0]
        if isinstance(job, EfficientDetError):
            raise job
        return job


def run_together(
    work: Callable[[StopRequest, Group], Any], devices: int, launcher: Launcher | None, stop: StopRequest
) -> Any:
    """Do the work of a run in a process for each device; returns what the first one returns.

    Args:
        work: picklable.
        devices: number of processes.
        launcher: what has started them; None to start them here.
        stop: the signal that asks the run to stop, which processes that are started here are told of.

    Raises:
        EfficientDetError: of the work; SettingError if a process did not come, or has ended, which it names.
        Stopped: the run has stopped as it was asked to.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    started = launcher or Launcher(LightningEnvironment(), devices)
    fabric = Fabric(
        accelerator="cpu", devices=started.devices // started.machines, num_nodes=started.machines,
        strategy=DDPStrategy(timeout=PATIENCE, process_group_backend=backend, start_method=method),  # type: ignore[arg-type]
        plugins=[started.environment],
    )  # fmt: skip
    if launcher is None:
        return _start(fabric, work, stop)
    try:
        fabric.strategy.setup_environment()
    except (RuntimeError, OSError) as error:
        environment = launcher.environment
        raise SettingError(
            f"process {environment.global_rank()} of {devices} could not join the others at "
            f"{environment.main_address}:{environment.main_port} ({printable(error)}); start all with {launcher.name}, "
            "at the same time, where each machine can reach that address"
        ) from error
    return _work_joined(work, launcher, stop)


def _work_joined(work: Callable[[StopRequest, Group], Any], launcher: Launcher, stop: StopRequest) -> Any:
    """Do the work in this process, which has joined the others."""
    group = Group(launcher)
    try:
        return work(stop, group)
    except EfficientDetError as error:
        if group.rank == 0:
            with suppress(EfficientDetError):
                group.share(error)
        raise
    except RuntimeError as error:  # such as a lost connection
        store = distributed.distributed_c10d._get_default_store()
        distributed.destroy_process_group()  # which tells it to those that wait for this one
        raise _who_is_missing(store, group.rank, launcher.devices, stop, error) from error
    finally:
        if distributed.is_initialized():  # gloo's threads must not outlive the interpreter
            distributed.destroy_process_group()


def _who_is_missing(store: Any, rank: int, devices: int, stop: StopRequest, error: Exception) -> Exception:
    """After a failure: an error that names the processes that do not answer; else the failure itself."""
    missing, deadline = set(range(devices)) - {rank}, time.monotonic() + ROLL_CALL
    try:
        store.set(f"efficientdet/left/{rank}", "")
        while missing and not stop and time.monotonic() < deadline:
            missing -= {other for other in missing if store.check([f"efficientdet/left/{other}"])}
            time.sleep(0.1)
    except RuntimeError:  # the store is gone, and with it the first process, which keeps it
        missing = {0}
    if not missing:
        return error
    names = ", ".join(map(str, sorted(missing)))
    return SettingError(
        f"process {names} of {devices} has ended (rank {names}; its own output says why), so the run cannot go on; "
        "resume it from its last save"
    )


def _start(fabric: Fabric, work: Callable[[StopRequest, Group], Any], stop: StopRequest) -> Any:
    """Start the processes, and wait for their end."""
    multiprocessing.set_forkserver_preload([__name__, "efficientdet.training.run", "lightning.pytorch"])
    others = multiprocessing.active_children()  # of the caller
    stop.install(True, lambda: [one for one in multiprocessing.active_children() if one not in others])
    try:
        answer = pickle.loads(fabric.strategy.launcher.launch(partial(_work_in_child, fabric, work, Path.cwd())))  # type: ignore[union-attr]
    except ProcessRaisedException as error:
        if stop:
            raise Stopped from error
        if (sent := sent_error(str(error))) is not None:
            raise sent from error
        raise
    except ProcessExitedException as error:
        if stop:
            raise Stopped from error
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with exit code {error.exit_code}"
        raise SettingError(
            f"the process of device {error.error_index} {how}; resume the run from its last save"
        ) from error
    finally:
        os.environ.pop("MASTER_PORT", None)  # which Lightning has chosen for this run
    if isinstance(answer, Terminated):
        stop.message = str(answer)
        raise Stopped
    return answer


def _work_in_child(fabric: Fabric, work: Callable[[StopRequest, Group], Any], folder: Path) -> bytes:
    """Do the work in a process that was started here.

    Returns:
        What the work returned or, where it was stopped, a Terminated; pickled, since Lightning looks into other types.
    """
    signal(SIGINT, SIG_IGN)  # a terminal's, which all processes get: the one that started this one passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(folder)
    with quiet_lightning(), stop_signals([SIGTERM], is_quiet=True) as stop:
        try:
            fabric.strategy.setup_environment()
            environment: ClusterEnvironment = fabric.strategy.cluster_environment  # type: ignore[attr-defined]
            return pickle.dumps(_work_joined(work, Launcher(environment, environment.world_size()), stop))
        except Stopped:
            return pickle.dumps(Terminated(stop.message))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips, and its warnings about loaders, which are ours."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                "does not have many workers", "smaller than the logging interval", "exists and is not empty",
                "num_workers", "isn't compatible with", "in eval mode", "Grad strides do not match",
            ):  # fmt: skip
                warnings.filterwarnings("ignore", f"(?s).*{text}.*")
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.utils.data.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
