"""Who started this process, and how it finds the others of its run.

A launcher tells each process that it starts how many there are, and JAX finds the others by the
same variables. But JAX takes all that is allocated for started: in an interactive shell of SLURM,
or with variables that an earlier launch left behind, it waits for processes that never come. So it
is asked to look for others only where a launcher says that this process is not alone.
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

# Of each launcher: its name, JAX's method, and the variables that say how many processes there are,
# which of them this is, and how many are on this host. mpirun stands first, since it may start
# helpers of its own by srun. SLURM's are those of the step: the allocation's, such as SLURM_NTASKS,
# stand in an interactive shell too.
COUNTED = (
    (
        *("Open MPI", "ompi"),
        *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    (
        *("SLURM", "slurm"),
        *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),
    ),
    ("MPI", "mpi4py", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),  # MPICH's and Intel's
)

# When one process dies, or ends by an error, JAX ends the others and says which it was. By its own
# timeouts they would wait for it for minutes.
TIMEOUTS: dict[str, Any] = {"heartbeat_timeout_seconds": 20, "shutdown_timeout_seconds": 30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher says of the processes that it has started."""

    launcher: str
    """Its name, for people."""

    method: str | None = None
    """The `cluster_detection_method` of JAX; None leaves it to JAX."""

    package: str | None = None
    """What must be installed for it."""

    num_processes: int | None = None
    """How many there are; None if JAX has to ask."""

    process_id: int | None = None
    """Which of them this is, likewise."""

    one_gpu: bool = False
    """Whether this one takes the GPU of its number on its host, and not all that it sees."""


def find_launch(environ: Mapping[str, str], platforms: str = "") -> Launch | None:
    """Find out who has started this process together with others.

    Args:
        environ: the environment's variables.
        platforms: of JAX, separated by commas; on a TPU machine JAX names `tpu` by itself.

    Returns:
        What the launcher says; None if this process is alone.
    """
    for launcher, method, total, this, on_this_host in COUNTED:
        if this in environ and int(environ.get(total) or 1) > 1:
            if method == "ompi" and "OMPI_MCA_orte_hnp_uri" not in environ:
                method = "mpi4py"  # since version 5 it does not say where process 0 is
            # SLURM writes 1(x4) for one on each of four hosts.
            alone = re.fullmatch(r"1(\(x\d+\))?", environ.get(on_this_host, "1"))
            # --gpus-per-task shows each process one GPU, whatever its number.
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
    """Join the other processes of this run, if there are any; before JAX's first use.

    Raises:
        UsageError: if they cannot be found.
    """
    if machine.coordinator_address is not None:
        _say_that_it_waits(f"{machine.num_processes} processes at {machine.coordinator_address}")
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
    others = f"{launch.launcher} has started this process among others, which JAX cannot find"
    flags = "--coordinator-address, --num-processes and --process-id name them too"
    if launch.package is not None and importlib.util.find_spec(launch.package) is None:
        raise UsageError(f"{others} without the package {launch.package}: install it; {flags}")
    if launch.process_id == 0:
        _say_that_it_waits(f"the {launch.num_processes or ''} processes of {launch.launcher}")
    try:
        jax.distributed.initialize(
            num_processes=launch.num_processes,
            # None is JAX's rule, one GPU a process; an empty list is all.
            local_device_ids=None if launch.one_gpu else [],
            cluster_detection_method=launch.method,
            **TIMEOUTS,
        )
    except Exception as error:  # each method has errors of its own
        if launch.launcher == "TPU" and isinstance(error, ValueError):
            return  # a TPU machine outside of a pod
        raise UsageError(f"{others}: {' '.join(str(error).split())}; {flags}") from error


def _say_that_it_waits(whom: str) -> None:
    print(f"waiting for {whom}", file=sys.stderr, flush=True)
