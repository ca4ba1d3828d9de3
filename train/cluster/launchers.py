"""Detecting the launcher of this process, and joining the other processes of its run.

A launcher tells each process how many processes it has started, and JAX finds the others from the
same variables. But JAX assumes that every allocated task has been started. In an interactive SLURM
shell, or with variables left behind by an earlier launcher, it waits for processes that never come.
So JAX is asked to find others only if a launcher reports more than one process.
"""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax

from train.config import Machine
from train.errors import UsageError

# Name of each launcher, JAX's detection method, and the variables that hold the number of
# processes, the index of this one, and the number of processes on this host. Open MPI comes first,
# since mpirun may start its helpers with srun. SLURM's variables are those of the step: those of
# the allocation, such as SLURM_NTASKS, are also set in an interactive shell.
COUNTED = (
    (
        *("Open MPI", "ompi"),
        *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    (
        *("SLURM", "slurm"),
        *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),
    ),
    ("MPI", "mpi4py", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
)

# If a process dies or fails, JAX ends the others and reports which one it was. With JAX's default
# timeouts, this would take minutes.
TIMEOUTS: dict[str, Any] = {"heartbeat_timeout_seconds": 20, "shutdown_timeout_seconds": 30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Processes of a run, as reported by their launcher."""

    launcher: str
    """Name of the launcher, for messages."""

    method: str | None = None
    """JAX's `cluster_detection_method`; None lets JAX choose."""

    package: str | None = None
    """Package that the method needs; None if it needs none."""

    num_processes: int | None = None
    """Number of processes; None if JAX must detect it."""

    process_id: int | None = None
    """Index of this process; None if JAX must detect it."""

    one_gpu: bool = False
    """Use only the GPU that matches this process's index on its host, not all visible GPUs."""


def find_launch(environ: Mapping[str, str], platforms: str = "") -> Launch | None:
    """Detect the launcher that has started this process together with others.

    Args:
        environ: the environment variables.
        platforms: JAX's platforms, separated by commas; on a TPU machine, JAX itself sets `tpu`.

    Returns:
        The processes that the launcher reports; None if this process is alone.
    """
    for launcher, method, total, this, on_this_host in COUNTED:
        if this in environ and int(environ.get(total) or 1) > 1:
            if method == "ompi" and "OMPI_MCA_orte_hnp_uri" not in environ:
                method = "mpi4py"  # Open MPI 5 and later hide the address of process 0
            # SLURM writes 1(x4) for one process on each of four hosts.
            alone = re.fullmatch(r"1(\(x\d+\))?", environ.get(on_this_host, "1"))
            # With --gpus-per-task, each process sees only its own GPU.
            sees_one = "," not in environ.get("CUDA_VISIBLE_DEVICES", ",")
            return Launch(
                launcher=launcher,
                method=method,
                package="mpi4py" if method == "mpi4py" else None,
                num_processes=int(environ[total]),
                process_id=int(environ[this]),
                one_gpu=not (alone or sees_one),
            )
    if "tpu" in platforms.split(","):
        return Launch(launcher="TPU")
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return Launch(
            launcher="Kubernetes",
            package="kubernetes",
            process_id=int(environ["JOB_COMPLETION_INDEX"]),
        )
    return None


def join_processes(machine: Machine) -> None:
    """Join the other processes of this run, if any. Call this before the first use of JAX.

    Raises:
        UsageError: if the other processes cannot be found.
    """
    if machine.coordinator_address is not None:
        _report_waiting(f"{machine.num_processes} processes at {machine.coordinator_address}")
        jax.distributed.initialize(
            machine.coordinator_address,
            machine.num_processes,
            machine.process_id,
            cluster_detection_method="deactivate",
            **TIMEOUTS,
        )
    elif launch := find_launch(os.environ, getattr(jax.config, "jax_platforms", None) or ""):
        _join(launch)


def _join(launch: Launch) -> None:
    problem = (
        f"{launch.launcher} launched this process as one of several, but JAX cannot find the others"
    )
    flags = "pass --coordinator-address, --num-processes and --process-id"
    if launch.package is not None and importlib.util.find_spec(launch.package) is None:
        raise UsageError(f"{problem} without the package {launch.package}: install it, or {flags}")
    if launch.process_id == 0:
        _report_waiting(f"{launch.num_processes or 'all'} processes of {launch.launcher}")
    try:
        jax.distributed.initialize(
            num_processes=launch.num_processes,
            # None is JAX's default, one GPU per process; an empty list means all GPUs.
            local_device_ids=None if launch.one_gpu else [],
            cluster_detection_method=launch.method,
            **TIMEOUTS,
        )
    except Exception as error:  # each method raises errors of its own
        if launch.launcher == "TPU" and isinstance(error, ValueError):
            return  # a TPU machine outside a pod
        raise UsageError(f"{problem}: {' '.join(str(error).split())}; {flags}") from error


def _report_waiting(processes: str) -> None:
    print(f"waiting for {processes}", file=sys.stderr, flush=True)
