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


class Group:
    """The processes of a run, one for each device, as one of them sees them.

    Args:
        environment: Lightning's, which knows the place of this process among them.
        devices: number of processes on all machines.
        machines: number of machines.
        launcher: what has started them, for messages; none where this package does.
    """

    def __init__(
        self, environment: ClusterEnvironment, devices: int = 1, machines: int = 1, launcher: str = ""
    ) -> None:
        self.environment = environment
        self.devices = devices
        self.machines = machines
        self.launcher = launcher
        self._is_waiting = devices > 1

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.environment.global_rank()

    def share(self, job: Any) -> Any:
        """Pass what the first process gives (the others give None) to all, and return it; the first call alone does.

        Raises:
            EfficientDetError: that is what the first process gives.
        """
        if self._is_waiting:
            self._is_waiting, answer = False, [job]
            distributed.broadcast_object_list(answer, device=torch.device("cpu"))
            job = answer[0]
        if isinstance(job, EfficientDetError):
            raise job
        return job


def find_group() -> Group:
    """The processes that this one was started with by torchrun or SLURM; a group of its own if it was started alone.

    Raises:
        SettingError: what the launcher tells is incomplete or does not fit; names the variables.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        missing = [name for name in TORCHRUN if name not in os.environ]
        if missing:
            raise SettingError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start with torchrun, "
                "or unset WORLD_SIZE to train in this process alone"
            )
        return _launched("torchrun", TorchElasticEnvironment(), "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    # Within an allocation's batch script, without srun, there is one process whatever the number of tasks.
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ:
        try:
            environment = SLURMEnvironment(auto_requeue=False)  # the run itself handles the signals
        except RuntimeError as error:
            raise SettingError(f"SLURM: {printable(error)}") from error
        return _launched("srun", environment, "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
    return Group(LightningEnvironment())


def _launched(launcher: str, environment: ClusterEnvironment, count: str, count_here: str) -> Group:
    devices, here = int(os.environ[count]), int(os.environ[count_here])
    if devices % here:
        raise SettingError(
            f"{launcher} started {devices} processes, {here} of them on this machine; start the same number on each "
            "machine"
        )
    return Group(environment, devices, devices // here, launcher)


def run_together(work: Callable[[StopRequest, Group], Any], devices: int, group: Group, stop: StopRequest) -> Any:
    """Do the work of a run in a process for each device; returns what the first one returns.

    Args:
        work: picklable.
        devices: number of processes.
        group: those that a launcher has started; this process alone to start them here.
        stop: the signal that asks the run to stop, which processes that are started here are told of.

    Raises:
        EfficientDetError: of the work; SettingError if a process did not come, or has ended, which it names.
        Stopped: the run has stopped as it was asked to.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    fabric = Fabric(
        accelerator="cpu", devices=devices // group.machines, num_nodes=group.machines, plugins=[group.environment],
        strategy=DDPStrategy(timeout=PATIENCE, process_group_backend=backend, start_method=method),  # type: ignore[arg-type]
    )  # fmt: skip
    if not group.launcher:
        return _start(fabric, work, stop)
    try:
        fabric.strategy.setup_environment()
    except (RuntimeError, OSError) as error:
        address = f"{group.environment.main_address}:{group.environment.main_port}"
        raise SettingError(
            f"process {group.rank} of {devices} could not join the others at {address} ({printable(error)}); start all "
            f"with {group.launcher}, at the same time, where each machine can reach that address"
        ) from error
    return _work_joined(work, group, stop)


def _work_joined(work: Callable[[StopRequest, Group], Any], group: Group, stop: StopRequest) -> Any:
    """Do the work in this process, which has joined the others."""
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
        raise _who_is_missing(store, group, stop, error) from error
    finally:
        if distributed.is_initialized():  # gloo's threads must not outlive the interpreter
            distributed.destroy_process_group()


def _who_is_missing(store: Any, group: Group, stop: StopRequest, error: Exception) -> Exception:
    """After a failure: an error that names the processes that do not answer; else the failure itself."""
    missing, deadline = set(range(group.devices)) - {group.rank}, time.monotonic() + ROLL_CALL
    try:
        store.set(f"efficientdet/left/{group.rank}", "")
        while missing and not stop and time.monotonic() < deadline:
            missing -= {other for other in missing if store.check([f"efficientdet/left/{other}"])}
            time.sleep(0.1)
    except RuntimeError:  # the store is gone, and with it the first process, which keeps it
        missing = {0}
    if not missing:
        return error
    names = ", ".join(map(str, sorted(missing)))
    return SettingError(
        f"process {names} of {group.devices} has ended (rank {names}; its own output says why), so the run cannot go "
        "on; resume it from its last save"
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
            return pickle.dumps(_work_joined(work, Group(environment, environment.world_size()), stop))
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
