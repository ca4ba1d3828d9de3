"""Runs whose batch size changes: their steps, epochs, examples and rates."""

import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_warmup import BatchSizePhase, BatchSizePhases
from tests.soak import outcome
from train.__main__ import main
from train.config import Config
from train.data.dataset import open_dataset
from train.data.minibatches import epoch_order, training_minibatches
from train.errors import UsageError
from train.plan import Plan
from train.recipes import digits
from train.run.checkpoint import Checkpoints
from train.run.metrics import MetricsLog
from train.run.workdir import claim, keep_config
from train.step.workers import make_workers
from train.timeline import Phase, Timeline, resume_timeline

ROOT = Path(__file__).parents[2]


def config_of(batch_size: int = 128, **changes: Any) -> Config:
    """The digits recipe with as many workers as images in a minibatch."""
    return digits().replace(num_workers=batch_size, batch_size_per_worker=1, **changes)


def run_of(num_examples: int, changes: list[tuple[int, int]], **fields: Any) -> Timeline:
    """Timeline of a run that is resumed once for each (step, batch size) in `changes`."""
    phases: tuple[Phase, ...] = ()
    timeline = Timeline(config_of(changes[0][1], **fields).experiment, num_examples)
    for step, batch_size in changes:
        timeline = resume_timeline(
            config_of(batch_size, **fields).experiment, num_examples, phases, step
        )
        phases = timeline.phases
    return timeline


@pytest.mark.parametrize("warmup", ["auto", "none", "constant", "gradual"])
def test_run_of_one_phase_matches_its_recipe_exactly(warmup: str):
    config = config_of(128, warmup=warmup)
    timeline, recipe = (
        Timeline(config.experiment, 1437),
        config.experiment.large_minibatch_recipe(1437),
    )
    assert timeline.num_steps == recipe.num_steps == 990
    assert timeline.describe() == recipe.describe()
    steps = np.arange(1001)
    np.testing.assert_array_equal(timeline.schedule()(steps), recipe.schedule()(steps))
    for step in range(1001):
        assert timeline.place(step) == (step // 11, step % 11 * 128)
        assert timeline.epoch(step) == step / 11
        assert timeline.ends_epoch(step) == (step % 11 == 0)
        assert timeline.num_examples_seen(step) == step * 128


@pytest.mark.parametrize("warmup", ["auto", "none", "constant"])
@pytest.mark.parametrize("warmup_epochs", [0, 0.4, 5])
def test_batch_size_phases_match_a_run_of_one_batch_size(warmup: str, warmup_epochs: float):
    timeline = Timeline(config_of(128, warmup=warmup, warmup_epochs=warmup_epochs).experiment, 1437)
    phases, steps = timeline.batch_size_phases(), np.arange(990)
    assert phases.num_steps == 990
    np.testing.assert_allclose(phases.schedule()(steps), timeline.schedule()(steps), rtol=1e-6)


def examples_step_by_step(
    num_examples: int, changes: list[tuple[int, int]], num_epochs: int
) -> Any:
    """Reference: simulate one update after the other, with the examples left in the epoch."""
    sizes, epoch, position, step = dict(changes), 0, 0, 0
    batch_size, places, ends = changes[0][1], list[tuple[int, int]](), set[int]()
    while True:
        if step in sizes:
            batch_size = sizes[step]
            if position and position + batch_size > num_examples:  # too few examples are left
                epoch, position = epoch + 1, 0
        if epoch >= num_epochs:
            return places, ends
        places.append((epoch, position))
        position, step = position + batch_size, step + 1
        if position + batch_size > num_examples:
            ends.add(step)
            epoch, position = epoch + 1, 0


@given(st.data())
@settings(deadline=None, derandomize=True, max_examples=150)
def test_examples_match_a_step_by_step_reference(data: Any):
    num_examples = data.draw(st.integers(1, 60))
    sizes = data.draw(st.lists(st.integers(1, num_examples), min_size=1, max_size=4))
    steps = data.draw(
        st.lists(st.integers(1, 40), min_size=len(sizes) - 1, max_size=len(sizes) - 1, unique=True)
    )
    num_epochs = data.draw(st.integers(1, 4))
    changes = list(zip([0, *sorted(steps)], sizes, strict=True))
    fields: dict[str, Any] = {"num_epochs": num_epochs, "milestones": (), "warmup": "none"}
    while run_of(num_examples, changes, **fields).num_steps <= changes[-1][0]:
        changes.pop()  # a finished run cannot change
    timeline = run_of(num_examples, changes, **fields)
    places, ends = examples_step_by_step(num_examples, changes, num_epochs)
    assert timeline.num_steps == len(places)
    assert [timeline.place(step) for step in range(len(places))] == places
    assert {step for step in range(1, len(places) + 1) if timeline.ends_epoch(step)} == ends
    seen = 0
    taken: Counter[tuple[int, int]] = Counter()
    for step, (epoch, position) in enumerate(places):
        assert timeline.num_examples_seen(step) == seen
        batch_size = [size for first, size in changes if first <= step][-1]
        taken.update((epoch, place) for place in range(position, position + batch_size))
        seen += batch_size
    assert timeline.num_examples_seen(len(places)) == seen
    assert set(taken.values()) == {1}  # no image twice within an epoch
    assert all(place < num_examples for _, place in taken)
    for step in ends:
        assert timeline.epoch(step) == timeline.place(step - 1)[0] + 1


def rates_step_by_step(timeline: Timeline, config: Config, changes: list[tuple[int, int]]) -> Any:
    """Reference: compute each rate from the previous one, toward the scaled rate."""
    rates: list[float] = []
    rate, target, slope = config.experiment.base_learning_rate, 0.0, 0.0
    batch_size, epoch, left = 0, 0, 0
    for step in range(timeline.num_steps):
        before = batch_size, epoch
        batch_size = [size for first, size in changes if first <= step][-1]
        epoch = timeline.place(step)[0]
        if before[0] != batch_size or step == 0:
            is_warmed = (
                config.experiment.warmup != "none"
                if step
                else batch_size > config.experiment.base_batch_size
            )
            left = int(config.experiment.warmup_epochs * (64 // batch_size)) if is_warmed else 0
        if before != (batch_size, epoch):
            decay = 0.1 ** sum(milestone <= epoch for milestone in config.experiment.milestones)
            target = (
                decay
                * config.experiment.base_learning_rate
                * batch_size
                / config.experiment.base_batch_size
            )
            slope = (target - rate) / left if left and target > rate else 0.0
            rate = rate if slope else target
        rates.append(rate)
        rate, left = rate + slope, left - 1
        if left == 0:
            rate, slope = target if slope else rate, 0.0
        left = max(left, 0)
    return rates


@given(st.data())
@settings(deadline=None, derandomize=True, max_examples=30)
def test_rates_match_a_step_by_step_reference(data: Any):
    sizes = data.draw(st.lists(st.sampled_from([2, 4, 8, 16]), min_size=1, max_size=4))
    sizes = [size for size, _ in itertools.groupby(sizes)]
    fields: dict[str, Any] = {
        "base_batch_size": 2,
        "base_learning_rate": 0.1,
        "num_epochs": 6,
        "warmup": data.draw(st.sampled_from(["auto", "none"])),
        "warmup_epochs": data.draw(st.sampled_from([0, 1, 2])),
        "milestones": data.draw(st.sampled_from([(), (3, 5), (2, 3, 4)])),
    }
    changes = [(0, sizes[0])]
    for size in sizes[1:]:
        num_steps = run_of(64, changes, **fields).num_steps
        if changes[-1][0] + 2 < num_steps:
            step = data.draw(st.integers(changes[-1][0] + 1, num_steps - 1))
            if run_of(64, [*changes, (step, size)], **fields).num_steps > step:
                changes.append((step, size))
    changes = [
        change for i, change in enumerate(changes) if i == 0 or change[1] != changes[i - 1][1]
    ]
    timeline = run_of(64, changes, **fields)
    config = config_of(sizes[0], **fields)
    if config.experiment.warmup == "none":
        config = config.replace(warmup_epochs=0)
    rates = rates_step_by_step(timeline, config, changes)
    applied = timeline.schedule()(np.arange(timeline.num_steps))
    np.testing.assert_allclose(np.broadcast_to(applied, len(rates)), rates, rtol=2e-6)


@given(st.data())
@settings(deadline=None, derandomize=True, max_examples=20)
def test_change_leaves_earlier_rates_unchanged(data: Any):
    sizes = data.draw(st.lists(st.integers(1, 16), min_size=2, max_size=2, unique=True))
    fields: dict[str, Any] = {
        "base_batch_size": 1, "num_epochs": 3, "warmup_epochs": data.draw(st.floats(0, 1.5)),
        "milestones": (data.draw(st.floats(1.5, 2.9)),),
    }  # fmt: skip
    before = run_of(61, [(0, sizes[0])], **fields)
    step = data.draw(st.integers(1, before.num_steps - 1))
    after = run_of(61, [(0, sizes[0]), (step, sizes[1])], **fields)
    if after.num_steps > step:
        one, other = (timeline.schedule()(np.arange(step)) for timeline in (before, after))
        np.testing.assert_allclose(
            np.broadcast_to(one, step), np.broadcast_to(other, step), rtol=2e-6
        )


def test_milestone_between_two_phases_applies_from_the_second():
    fields: dict[str, Any] = {
        "base_batch_size": 1, "base_learning_rate": 0.1, "warmup": "none", "num_epochs": 2,
        "milestones": (0.74,),  # 8 of 11 steps before, 1 of 2 after
    }  # fmt: skip
    applied = run_of(11, [(0, 1), (8, 4)], **fields).schedule()(np.arange(10))
    np.testing.assert_allclose(applied, [0.1] * 8 + [0.04] * 2, rtol=2e-6)


def test_change_during_constant_warmup_ends_it():
    fields: dict[str, Any] = {
        "base_batch_size": 2, "base_learning_rate": 0.1, "warmup": "constant", "warmup_epochs": 1,
        "num_epochs": 4, "milestones": (3,),
    }  # fmt: skip
    timeline = run_of(64, [(0, 4), (8, 8)], **fields)  # after half an epoch of 16 steps
    applied = timeline.schedule()(np.arange(timeline.num_steps))
    ramp = [0.1 + 0.3 * step / 8 for step in range(8)]
    np.testing.assert_allclose(applied, [0.1] * 8 + ramp + [0.4] * 12 + [0.04] * 8, rtol=2e-6)


def test_changing_back_adds_a_phase_and_no_change_adds_none():
    phases = run_of(640, [(0, 64), (5, 128), (7, 64)]).phases
    assert [(phase.first_step, phase.batch_size) for phase in phases] == [
        (0, 64), (5, 128), (7, 64),
    ]  # fmt: skip
    assert resume_timeline(config_of(64).experiment, 640, phases, 9).phases == phases
    other = config_of(64).replace(num_workers=32, batch_size_per_worker=2).experiment
    assert resume_timeline(other, 640, phases, 9).phases[-1] == Phase(
        first_step=9, num_workers=32, batch_size_per_worker=2
    )


def test_plan_of_a_changed_run_lists_batch_sizes_and_rates():
    fields: dict[str, Any] = {"num_epochs": 4, "warmup_epochs": 1, "milestones": (3,)}
    said = run_of(1437, [(0, 64), (33, 128)], **fields).describe()
    assert "k = 64 workers x n = 1 images, kn = 64, from step 0" in said
    assert "k = 128 workers x n = 1 images, kn = 128, from step 33" in said
    assert "60 steps = 4 epochs" in said
    assert [line.split()[-3:] for line in said.splitlines()[-6:]] == [
        ["0", "0.00", "0.0125"], ["22", "1.00", "0.05"], ["33", "1.50", "0.05"],
        ["44", "2.55", "0.1"], ["49", "3.00", "0.01"], ["59", "3.91", "0.01"],
    ]  # fmt: skip


def test_minibatches_of_a_changed_run_follow_the_epoch_order(digits_dir: Path):
    config = digits().replace(data_dir=digits_dir, num_reader_threads=1, num_workers=16)
    dataset = open_dataset(config)
    first = Phase(first_step=0, num_workers=8, batch_size_per_worker=16)
    timeline = resume_timeline(config.experiment, 1437, (first,), 8)
    plan = Plan(config=config, dataset=dataset, workers=make_workers(config), timeline=timeline)
    rows = training_minibatches(plan, 8, 12)
    labels = [
        [dataset.train[example]["label"] for example in epoch_order(0, epoch, 1437)[p : p + 256]]
        for epoch, p in [(0, 1024), (1, 0), (1, 256), (1, 512)]
    ]
    assert [row.labels.tolist() for row in rows] == labels


# Four epochs. The first 33 steps have 64 images: one epoch, and half of the 22 steps of the second.
# Then steps have 128: 5 for the 733 images left in the second epoch, and two epochs of 11.
FLAGS = ["--num-epochs", "4", "--warmup-epochs", "1", "--milestones", "3", "--log-every-steps", "1"]
FLAGS += ["--checkpoint-every-epochs", "1"]
SMALL = [*FLAGS, "--num-workers", "4", "--num-steps", "33"]
LARGE = [*FLAGS, "--num-workers", "8", "--allow-batch-size-change"]

LIFE = """
import os, signal, sys
from train.__main__ import main
from train.run.report import Report

kill_at, *args = sys.argv[1:]
queue = Report.queue

def queue_or_die(self, step, *rest):
    if str(step) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    queue(self, step, *rest)

Report.queue = queue_or_die
sys.exit(main(args))
"""


def live(workdir: Path, digits_dir: Path, flags: list[str], kill_at: int | None = None) -> int:
    """Run the command in a subprocess that kills itself at step `kill_at`; return its exit code."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    clean |= {
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
    }
    command = [sys.executable, "-c", LIFE, str(kill_at), "--workdir", str(workdir)]
    command += ["--data-dir", str(digits_dir), *flags]
    return subprocess.run(command, cwd=ROOT, env=clean).returncode


@pytest.fixture(scope="module")
def before(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that was stopped in the middle of its second epoch."""
    workdir = tmp_path_factory.mktemp("phases") / "before"
    assert live(workdir, digits_dir, SMALL) == 0
    return workdir


@pytest.fixture(scope="module")
def changed(before: Path, digits_dir: Path) -> Path:
    """A copy of `before` that was resumed with twice the batch size, and finished."""
    workdir = shutil.copytree(before, before.with_name("changed"))
    assert live(workdir, digits_dir, LARGE) == 0
    return workdir


def records_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def summary_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def test_run_resumes_with_twice_the_batch_size(changed: Path):
    records = records_of(changed)
    assert [record["step"] for record in records] == [*range(1, 61)]
    seen = [64 * step for step in range(1, 34)] + [2112 + 128 * step for step in range(1, 28)]
    assert [record["train/num_examples_seen"] for record in records] == seen
    own = [*(step / 22 for step in range(1, 34)), *(step / 11 for step in range(18, 45))]
    assert [record["epoch"] for record in records] == own
    # From 0.0125 to 0.05 in the first epoch; from there to 0.1 in 11 steps; a tenth at epoch 3.
    rates = [0.0125 + 0.0375 * min(step / 22, 1) for step in range(33)]
    rates += [0.05 + 0.05 * min(step / 11, 1) for step in range(16)] + [0.01] * 11
    applied = [record["train/learning_rate"] for record in records]
    assert applied == pytest.approx(rates, rel=1e-6)
    phases = BatchSizePhases(
        num_examples=1437,
        phases=(
            BatchSizePhase(num_epochs=1.5, batch_size=64, warmup_epochs=1),
            BatchSizePhase(num_epochs=16 / 11, batch_size=128, warmup_epochs=1),
            BatchSizePhase(num_epochs=1, batch_size=128, decay_factor=0.1),
        ),
        base_learning_rate=0.0125,
        base_batch_size=16,
    )
    np.testing.assert_allclose(phases.schedule()(np.arange(60)), applied, rtol=1e-6)
    evaluated = {
        record["step"]: record["eval/top1_error"]
        for record in records
        if "eval/top1_error" in record
    }
    assert evaluated.keys() == {22, 33, 38, 49, 60}  # the first run ended at 33
    summary = summary_of(changed)
    assert summary["num_steps"] == 60
    assert summary["num_examples_seen"] == 33 * 64 + 27 * 128
    ends = [evaluated[step] for step in (22, 38, 49, 60)]
    assert summary["top1_error_median_last5"] == statistics.median(ends)
    kept = json.loads((changed / "checkpoints" / "60" / "phases.json").read_text())
    assert [(phase["first_step"], phase["num_workers"]) for phase in kept] == [(0, 4), (33, 8)]
    assert json.loads((changed / "config.json").read_text())["num_workers"] == 8


def test_kills_after_the_change_do_not_alter_the_result(
    before: Path, changed: Path, digits_dir: Path
):
    """The first kill is before a checkpoint of the new phase exists, the second is after that."""
    workdir = shutil.copytree(before, before.with_name("killed"))
    assert live(workdir, digits_dir, LARGE, kill_at=36) == -signal.SIGKILL
    assert live(workdir, digits_dir, LARGE, kill_at=52) == -signal.SIGKILL
    without = [flag for flag in LARGE if flag != "--allow-batch-size-change"]
    assert live(workdir, digits_dir, without) == 0
    assert outcome(workdir) == outcome(changed)


def refusal(workdir: Path, digits_dir: Path, flags: list[str], capsys: Any) -> str:
    assert main(["--workdir", str(workdir), "--data-dir", str(digits_dir), *flags]) == 2
    return capsys.readouterr().err


@given(
    num_examples=st.lists(st.integers(40, 80), min_size=2, max_size=2),
    batch_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    steps=st.lists(st.integers(1, 60), min_size=3, max_size=3),
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_epochs_are_counted_with_the_new_number_of_images(
    num_examples: list[int], batch_sizes: list[int], steps: list[int]
):
    """Another number of images changes epochs as if it had always been the new one."""
    before, now = num_examples
    phases: tuple[Phase, ...] = ()
    step = 0
    for batch_size, length in zip(batch_sizes, steps, strict=False):
        config = config_of(batch_size, warmup="none")
        phases = resume_timeline(config.experiment, before, phases, step).phases
        step += length
    experiment = config_of(batch_sizes[-1], warmup="none").experiment
    resumed = resume_timeline(experiment, now, phases, step)
    assert resumed.phases == phases
    always = Timeline(experiment, now, phases)
    seen = [resumed.num_examples_seen(s) for s in range(step, step + 50)]
    assert [b - a for a, b in itertools.pairwise(seen)] == [batch_sizes[-1]] * 49
    for s in range(step, step + 50):
        assert resumed.place(s) == always.place(s)
        epoch, position = resumed.place(s)
        assert epoch <= resumed.epoch(s + 1) <= epoch + 1
        assert 0 <= position <= now - batch_sizes[-1]
    ends = [s for s in range(step + 1, step + 200) if resumed.ends_epoch(s)]
    assert set(np.diff(ends)) <= {now // batch_sizes[-1]}
    assert resumed.num_steps > 0


def test_too_few_images_for_an_earlier_batch_size_are_an_error():
    (phase,) = Timeline(config_of(128).experiment, 1437).phases
    with pytest.raises(UsageError) as error:
        resume_timeline(config_of(64).experiment, 100, (phase,), 5)
    assert str(error.value) == (
        "the run so far used minibatches of up to 128 images, more than the 100 training images "
        "that there are now; restore the data"
    )


def test_batch_size_change_without_the_flag_is_refused(
    before: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    said = refusal(before, digits_dir, [*FLAGS, "--num-workers", "8"], capsys)
    assert said == (
        f"python -m train: --workdir {before} holds another run: --num-workers was 4 and is now 8; "
        "choose another --workdir or repeat the experiment's flags. Only flags of machine and "
        "output may change, such as --num-devices, the batch size with --allow-batch-size-change, "
        "and --num-epochs and --milestones with --extend\n"
    )


def test_the_flag_allows_no_other_change(
    before: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    said = refusal(before, digits_dir, [*LARGE, "--seed", "1"], capsys)
    assert "holds another run: --seed was 0 and is now 1; choose" in said


@pytest.mark.parametrize("num_workers", [16, 88])
def test_finished_run_cannot_change_its_batch_size(
    changed: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str], num_workers: int
):
    config = (changed / "config.json").read_text()
    flags = [*LARGE, "--num-workers", str(num_workers)]
    assert refusal(changed, digits_dir, flags, capsys) == (
        f"python -m train: --workdir {changed} holds a run that has no steps left for a batch size "
        f"of {num_workers * 16} after step 60; a finished run cannot change\n"
    )
    assert (changed / "config.json").read_text() == config
    assert main(["--workdir", str(changed), "--data-dir", str(digits_dir), *LARGE]) == 0
    assert "already finished: 60 steps, 5568 images seen" in capsys.readouterr().out


def test_run_without_a_checkpoint_starts_with_the_new_batch_size(tmp_path: Path):
    before = digits().replace(workdir=tmp_path, num_workers=16)
    with claim(before), Checkpoints(tmp_path / "checkpoints", before):
        MetricsLog(tmp_path, 0).close()  # the state after a kill before the first checkpoint
    config = before.replace(num_workers=8, allow_batch_size_change=True)
    with claim(config), Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        timeline = resume_timeline(
            config.experiment, 1437, checkpoints.phases, checkpoints.newest_step
        )
        keep_config(config)
    (phase,) = timeline.phases
    assert (phase.first_step, phase.batch_size) == (0, 128)
    with claim(config.replace(allow_batch_size_change=False)):
        pass  # the new batch size is now the run's own
