"""Tests of the detection of launchers, and of variables left over from earlier ones."""

import pytest

from train.cluster.launchers import Launch, find_launch
from train.errors import UsageError

# Recorded under Open MPI 4.1 and SLURM 22.05.
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
ALLOCATION = {  # set by `salloc --nodes 2 --ntasks 2` in its shell
    "SLURM_JOB_ID": "3",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}
STEP = ALLOCATION | {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
# On clusters with use_interactive_step, the shell is a step itself; SLURM_NTASKS is still 2.
INTERACTIVE = STEP | {
    "SLURM_PROCID": "0",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        ALLOCATION,
        ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script, without srun
        INTERACTIVE,
        MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"OMPI_MCA_orte_hnp_uri": MPIRUN["OMPI_MCA_orte_hnp_uri"]},
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_PROCID": ""},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        POD,  # for example a notebook
    ],
)
def test_a_single_process_trains_alone(environ: dict[str, str]):
    assert find_launch(environ) is None


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        (
            STEP,
            Launch(
                launcher="SLURM",
                method="slurm",
                num_processes=2,
                process_id=1,
                variable="SLURM_STEP_NUM_TASKS=2",
            ),
        ),
        (
            MPIRUN,
            Launch(
                launcher="Open MPI",
                method="ompi",
                num_processes=4,
                process_id=2,
                variable="OMPI_COMM_WORLD_SIZE=4",
                one_gpu=True,
            ),
        ),
        (
            {name: value for name, value in MPIRUN.items() if name != "OMPI_MCA_orte_hnp_uri"},
            Launch(
                launcher="Open MPI",
                method="mpi4py",
                package="mpi4py",
                num_processes=4,
                process_id=2,
                variable="OMPI_COMM_WORLD_SIZE=4",
                one_gpu=True,
            ),
        ),
        (
            {"PMI_SIZE": "8", "PMI_RANK": "7", "MPI_LOCALNRANKS": "1"},
            Launch(
                launcher="MPI",
                method="mpi4py",
                package="mpi4py",
                num_processes=8,
                process_id=7,
                variable="PMI_SIZE=8",
            ),
        ),
        (
            POD | {"JOB_COMPLETION_INDEX": "3"},
            Launch(
                launcher="Kubernetes",
                package="kubernetes",
                process_id=3,
                variable="JOB_COMPLETION_INDEX=3",
            ),
        ),
    ],
)
def test_the_launcher_and_its_processes_are_detected(environ: dict[str, str], launch: Launch):
    assert find_launch(environ) == launch


def test_mpirun_takes_precedence_over_slurm():
    launch = find_launch(STEP | MPIRUN)
    assert launch is not None
    assert launch.launcher == "Open MPI"


@pytest.mark.parametrize(
    ("platforms", "launcher"), [("tpu,cpu", "TPU"), ("cpu", "Kubernetes"), ("", "Kubernetes")]
)
def test_a_tpu_platform_takes_precedence_over_kubernetes(platforms: str, launcher: str):
    launch = find_launch(POD | {"JOB_COMPLETION_INDEX": "0"}, platforms)
    assert launch is not None
    assert launch.launcher == launcher


@pytest.mark.parametrize(
    ("tasks_per_node", "visible", "one_gpu"),
    [
        ("1(x4)", None, False),  # a single process per host uses all GPUs
        ("1(x4)", "0,1,2,3", False),
        ("8(x4)", None, True),  # one process per GPU
        ("8(x4)", "0,1,2,3,4,5,6,7", True),
        ("11(x4)", None, True),
        ("2,1", None, True),
        ("8(x4)", "0", False),  # --gpus-per-task has already chosen
    ],
)
def test_gpus_are_divided_among_the_processes_of_a_host(
    tasks_per_node: str, visible: str | None, one_gpu: bool
):
    environ = STEP | {"SLURM_STEP_TASKS_PER_NODE": tasks_per_node}
    if visible is not None:
        environ |= {"CUDA_VISIBLE_DEVICES": visible}
    launch = find_launch(environ)
    assert launch is not None
    assert launch.one_gpu == one_gpu


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_STEP_NUM_TASKS": "two", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "-1"},
        {"OMPI_COMM_WORLD_SIZE": "2.5", "OMPI_COMM_WORLD_RANK": "0"},
        POD | {"JOB_COMPLETION_INDEX": "first"},
    ],
)
def test_a_variable_that_is_no_number_is_named(environ: dict[str, str]):
    with pytest.raises(UsageError, match=r"environment variable .* unset it, or pass --num-proc"):
        find_launch(environ)
