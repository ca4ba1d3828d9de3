"""Detection of the launcher of this process, such as SLURM or mpirun.

A launcher tells each process how many processes it has started, and JAX finds the others from the
same variables. But JAX assumes that every allocated task has been started. In an interactive SLURM
shell, or with variables left behind by an earlier launcher, it waits for processes that never come.
So JAX is asked to find others only if a launcher reports more than one process.
"""

import dataclasses
import re
from collections.abc import Mapping

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

    variable: str | None = None
    """The environment variable, as NAME=value, that reports several processes, for messages."""

    one_gpu: bool = False
    """Use only the GPU that matches this process's index on its host, not all visible GPUs."""


def find_launch(environ: Mapping[str, str], platforms: str = "") -> Launch | None:
    """Detect the launcher that has started this process together with others.

    Args:
        environ: the environment variables.
        platforms: JAX's platforms, separated by commas; on a TPU machine, JAX itself sets `tpu`.

    Returns:
        The processes that the launcher reports; None if this process is alone.

    Raises:
        UsageError: if a variable of the launcher is not a number.
    """
    for launcher, method, total, this, on_this_host in COUNTED:
        if this in environ and (num_processes := _integer(environ, total, default=1)) > 1:
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
                num_processes=num_processes,
                process_id=_integer(environ, this),
                variable=f"{total}={environ[total]}",
                one_gpu=not (alone or sees_one),
            )
    if "tpu" in platforms.split(","):
        return Launch(launcher="TPU")
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return Launch(
            launcher="Kubernetes",
            package="kubernetes",
            process_id=_integer(environ, "JOB_COMPLETION_INDEX"),
            variable=f"JOB_COMPLETION_INDEX={environ['JOB_COMPLETION_INDEX']}",
        )
    return None


def _integer(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {name} is {text!r}, but a launcher sets it to a whole "
            "number; unset it, or pass --num-processes 1 to train in this process alone"
        )
    return int(text)
