"""Runs that continue with a longer schedule."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.soak import outcome
from train.__main__ import main
from train.config import Config
from train.errors import UsageError
from train.run.atomic import write_atomically
from train.run.extension import schedule_before
from train.run.workdir import read_summary
from train.timeline import Phase, Timeline, resume_timeline

NUM_EXAMPLES = 1437  # 11 steps of 128 images

SHORT = ["--num-epochs", "2", "--milestones", "1", "9"]
LONG = ["--num-epochs", "3", "--milestones", "1", "2"]

MakeConfig = Callable[..., Config]


def extended(
    digits_config: MakeConfig, step: int, phases: Sequence[Phase] = (), **changes: object
) -> Timeline | None:
    """Extend a run of four epochs with milestones at 2 and 3 that has completed some steps."""
    before = digits_config(num_epochs=4, warmup_epochs=1, milestones=(2, 3))
    workdir = before.output.workdir
    workdir.mkdir(exist_ok=True)
    write_atomically(workdir / "config.json", before.to_json())
    phases = phases or Timeline(before.experiment, NUM_EXAMPLES).phases
    config = digits_config(**({"num_epochs": 4, "warmup_epochs": 1, "extend": True} | changes))
    now = resume_timeline(config.experiment, NUM_EXAMPLES, phases, step)
    return schedule_before(config, now, phases, NUM_EXAMPLES, step)


@pytest.mark.parametrize(
    ("step", "num_epochs", "milestones"),
    [
        (44, 9, (2, 3)),  # finished
        (44, 9, (2, 3, 4, 6)),  # a milestone at the end of what was completed is a later one
        (33, 9, (2, 5)),  # stopped just before the milestone at epoch 3
        (10, 3, (1.5,)),  # also shorter
    ],
)
def test_later_milestones_and_the_length_may_change(
    digits_config: MakeConfig, step: int, num_epochs: float, milestones: tuple[float, ...]
):
    before = extended(digits_config, step, num_epochs=num_epochs, milestones=milestones)
    assert before is not None
    assert before.num_steps == 44


def test_the_same_schedule_is_no_extension(digits_config: MakeConfig):
    assert extended(digits_config, 44, milestones=(2, 3)) is None


@pytest.mark.parametrize(
    ("milestones", "changes", "keep"),
    [
        ((2, 6), "drops 3", "2 3"),
        ((1, 3, 6), "drops 2 and adds 1", "2 3"),
        ((2, 3, 3.5), "adds 3.5", "2 3"),
        ((), "drops 2 3", "2 3"),
    ],
)
def test_milestones_that_have_passed_must_stay(
    digits_config: MakeConfig, milestones: tuple[float, ...], changes: str, keep: str
):
    with pytest.raises(UsageError) as error:
        extended(digits_config, 44, num_epochs=8, milestones=milestones)
    workdir = digits_config().output.workdir
    assert str(error.value) == (
        "--extend cannot change the learning rates of the 44 steps (4 epochs) that the run in "
        f"--workdir {workdir} has completed, but --milestones {changes}; before epoch 4 keep "
        f"{keep}, and change only later ones"
    )


def test_no_milestone_can_be_added_to_completed_epochs(digits_config: MakeConfig):
    with pytest.raises(UsageError, match=r"milestones adds 1; before epoch 1.545 keep none, and"):
        extended(digits_config, 17, milestones=(1,), num_epochs=8)


def test_the_new_schedule_must_reach_the_next_step(digits_config: MakeConfig):
    with pytest.raises(UsageError, match=r"^--num-epochs is 3, which makes 33 steps; .* the 44"):
        extended(digits_config, 44, num_epochs=3, milestones=(2, 3))


@pytest.mark.parametrize(("milestones", "may"), [((2, 5), True), ((1, 3), False)])
def test_a_run_whose_batch_size_has_changed_can_be_extended(
    digits_config: MakeConfig, milestones: tuple[float, ...], may: bool
):
    phases = [
        Phase(first_step=0, num_workers=16, batch_size_per_worker=16),  # 5 steps per epoch
        Phase(first_step=8, num_workers=8, batch_size_per_worker=16),
    ]
    step = 18  # epoch 2.5
    if may:
        assert extended(digits_config, step, phases, num_epochs=8, milestones=milestones)
    else:
        with pytest.raises(UsageError, match="drops 2 and adds 1; before epoch 2"):
            extended(digits_config, step, phases, num_epochs=8, milestones=milestones)


@pytest.fixture(scope="module")
def train(digits_dir: Path) -> Callable[..., int]:
    def call(workdir: Path, *flags: str) -> int:
        flags = ("--warmup-epochs", "1", "--data-dir", str(digits_dir), *flags)
        return main(["--workdir", str(workdir), *flags])

    return call


def test_an_extended_run_equals_one_of_that_length(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(tmp_path / "long", *LONG, "--seed", "3") == 0
    short = [*SHORT, "--seeds", "3"]
    assert train(tmp_path, *short) == 0
    workdir = tmp_path / "seed-3"
    config = (workdir / "config.json").read_text()
    seconds = read_summary(workdir)["seconds"]
    capsys.readouterr()

    longer = [*LONG, "--seeds", "3"]
    assert train(tmp_path, *longer) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--num-epochs was 2 and is now 3" in said
    assert "and --num-epochs and --milestones with --extend" in said
    assert train(tmp_path, *longer, "--extend", "--warmup-epochs", "0.5") == 2
    assert "--warmup-epochs was 1 and is now 0.5" in capsys.readouterr().err
    assert (workdir / "config.json").read_text() == config
    assert (workdir / "summary.json").exists()

    assert train(tmp_path, *longer, "--extend") == 0
    said = capsys.readouterr().out
    lengths = re.findall(r"length +(\d+) steps", said)
    assert lengths == ["22", "33"]  # before and after
    assert "resuming after step 22" in said
    assert outcome(workdir) == outcome(tmp_path / "long")
    assert read_summary(workdir)["seconds"] > seconds  # of both runs
    for saved in (
        json.loads((workdir / "config.json").read_text()),
        json.loads((workdir / "checkpoints" / "33" / "manifest.json").read_text())["config"],
    ):
        assert (saved["num_epochs"], saved["milestones"]) == (3, [1, 2])

    assert train(tmp_path, *longer) == 0  # from now on it is the run's own schedule
    assert "already finished: 33 steps" in capsys.readouterr().out
