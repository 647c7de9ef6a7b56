"""Processes that torchrun or SLURM has started, on one machine or many: they join, and the first passes on the job."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from efficientdet.errors import EfficientDetError, SettingError
from efficientdet.text import printable

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

# What torchrun tells each process.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for another; PyTorch's own limits are 10 to 30 minutes.
PATIENCE = timedelta(minutes=10)
# Seconds in which the processes that are left say so, once one of them has ended.
ROLL_CALL = 10


@dataclass(frozen=True)
class Cluster:
    """The processes of a run that something else has started.

    Attributes:
        environment: Lightning's, which knows the place of this process among them.
        devices: number of processes on all machines.
        devices_here: number of processes on this machine.
        launcher: what started them, for messages.
    """

    environment: ClusterEnvironment
    devices: int
    devices_here: int
    launcher: str

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.environment.global_rank()

    @property
    def machines(self) -> int:
        """Number of machines."""
        return self.devices // self.devices_here


def find_cluster() -> Cluster | None:
    """The processes that this one was started with; None if it was started alone.

    Raises:
        SettingError: what the launcher tells is incomplete or does not fit; names the variables.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return _torchrun()
    # Within an allocation's batch script, without srun, there is one process whatever the number of tasks.
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ:
        return _slurm()
    return None


def is_first_process() -> bool:
    """Whether this process is the first, or the only one, of those that it was started with."""
    cluster = find_cluster()
    return cluster is None or cluster.rank == 0


def _torchrun() -> Cluster:
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise SettingError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start with torchrun, or "
            "unset WORLD_SIZE to train in this process alone"
        )
    devices, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return _checked(Cluster(TorchElasticEnvironment(), devices, here, "torchrun"))


def _slurm() -> Cluster:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    try:
        environment = SLURMEnvironment(auto_requeue=False)  # the run itself handles the signals
    except RuntimeError as error:
        raise SettingError(f"SLURM: {printable(error)}") from error
    here = int(os.environ["SLURM_NTASKS_PER_NODE"])
    return _checked(Cluster(environment, int(os.environ["SLURM_NTASKS"]), here, "srun"))


def _checked(cluster: Cluster) -> Cluster:
    if cluster.devices % cluster.devices_here:
        raise SettingError(
            f"{cluster.launcher} started {cluster.devices} processes, {cluster.devices_here} of them on this machine; "
            "start the same number on each machine"
        )
    return cluster


@contextmanager
def joined(cluster: Cluster | None) -> Iterator[Callable[[Any], Any]]:
    """Within this context the processes of a cluster can talk to each other.

    Yields:
        A function that every process calls once: it passes what the first one gives (the others give None) to all, and
        returns it. An error of the first process before that is raised in all.

    Raises:
        SettingError: some did not come, or one has ended; names it.
    """
    if cluster is None:
        yield lambda job: job
        return
    store = _meet(cluster)
    shared = False

    def share(job: Any) -> Any:
        nonlocal shared
        shared, answer = True, [job]
        distributed.broadcast_object_list(answer, device=torch.device("cpu"))
        if isinstance(answer[0], EfficientDetError):
            raise answer[0]
        return answer[0]

    try:
        yield share
    except EfficientDetError as error:
        if cluster.rank == 0 and not shared:
            with suppress(EfficientDetError):
                share(error)
        raise
    except RuntimeError as error:  # such as a lost connection
        distributed.destroy_process_group()  # which tells it to those that wait for this one
        raise _who_is_missing(cluster, store, error) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _meet(cluster: Cluster) -> Any:
    """Join the other processes; returns the store that they share."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    os.environ["MASTER_ADDR"] = cluster.environment.main_address
    os.environ["MASTER_PORT"] = str(cluster.environment.main_port)
    rank, size = cluster.rank, cluster.devices
    try:
        store, *_ = next(rendezvous("env://", rank, size, timeout=PATIENCE))
        distributed.init_process_group(backend, store=store, timeout=PATIENCE, rank=rank, world_size=size)
    except (RuntimeError, OSError) as error:
        raise SettingError(
            f"process {rank} of {size} could not join the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({printable(error)}); start all with {cluster.launcher}, at the same time, "
            "where each machine can reach that address"
        ) from error
    return store


def _who_is_missing(cluster: Cluster, store: Any, error: RuntimeError) -> SettingError | RuntimeError:
    """After a failure: an error that names the processes that do not answer; else the failure itself."""
    missing, deadline = set(range(cluster.devices)) - {cluster.rank}, time.monotonic() + ROLL_CALL
    try:
        store.set(f"efficientdet/left/{cluster.rank}", "")
        while missing and time.monotonic() < deadline:
            missing -= {rank for rank in missing if store.check([f"efficientdet/left/{rank}"])}
            time.sleep(0.1)
    except RuntimeError:  # the store is gone, and with it the first process, which keeps it
        missing = {0}
    if not missing:
        return error
    names = ", ".join(map(str, sorted(missing)))
    return SettingError(
        f"process {names} of {cluster.devices} has ended (rank {names}; its own output says why), so the run cannot go "
        "on; resume it from its last save"
    )
