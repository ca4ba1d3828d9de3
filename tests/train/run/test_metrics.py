"""metrics.jsonl and TensorBoard across kills and resumes, and the score of a run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.recipes import digits
from train.run.metrics import (
    MetricsLog,
    Record,
    means,
    read_records,
    results,
)
from train.timeline import Timeline

REPOSITORY = Path(__file__).parents[3]
ELEVEN_STEPS = Timeline(digits().experiment, 11 * digits().experiment.batch_size)  # an epoch


def record_of(step: int, **more: Any) -> Record:
    return {"step": step, "epoch": step / 11, "train/loss": 1 / step, **more}


def write_records(workdir: Path, first: int, last: int, scale: float = 1) -> None:
    """Write the records of a run that starts after step `first` and ends with step `last`."""
    log = MetricsLog(workdir, first)
    for step in range(first + 1, last + 1):
        log.write(record_of(step) | {"train/loss": scale / step})
    log.close()


def lines_of(workdir: Path) -> list[Record]:
    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def curve(workdir: Path, name: str = "train/loss") -> dict[int, float]:
    """Values that TensorBoard shows, by step; a duplicate step is an error."""
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    points = events.Scalars(name)
    steps = [point.step for point in points]
    assert len(steps) == len(set(steps)), f"twice: {sorted(steps)}"
    return {point.step: point.value for point in points}


def test_missing_file_has_no_records(tmp_path: Path):
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_each_record_is_a_line_of_json(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    records = [record_of(1), record_of(2, **{"eval/top1_error": 0.25, "eval/num_examples": 360})]
    for record in records:
        log.write(record)
        assert lines_of(tmp_path)[-1] == record  # at once, not when the run ends
    log.close()
    assert lines_of(tmp_path) == read_records(tmp_path / "metrics.jsonl") == log.records == records


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_incomplete_last_line_is_dropped(tmp_path: Path, cut: int):
    write_records(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["step"] for record in read_records(path)] == [1, 2]
    write_records(tmp_path, 2, 4)
    assert [record["step"] for record in lines_of(tmp_path)] == [1, 2, 3, 4]


def test_records_after_the_resumed_step_are_dropped(tmp_path: Path):
    write_records(tmp_path, 0, 5)
    write_records(tmp_path, 2, 4, scale=10)
    assert [r["train/loss"] for r in lines_of(tmp_path)] == [1, 1 / 2, 10 / 3, 10 / 4]


@pytest.mark.parametrize("resumed_at", [0, 1, 3, 5])
@pytest.mark.parametrize("clock", ["goes on", "was set back"])
def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path: Path, resumed_at: int, clock: str):
    """The run was killed after step 5 and resumed from a checkpoint, or started again."""
    write_records(tmp_path, 0, 5)
    if clock == "was set back":  # TensorBoard reads its files in the order of these numbers
        (events,) = (tmp_path / "tensorboard").iterdir()
        events.rename(events.with_name("events.out.tfevents.9999999999.host"))
    write_records(tmp_path, resumed_at, 7, scale=10)
    expected = {s: (1 if s <= resumed_at else 10) / s for s in range(1, 8)}
    found = curve(tmp_path)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        [found[step] for step in expected], list(expected.values()), rtol=1e-6
    )


def test_training_time_continues_after_a_resume(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    assert log.seconds == 0
    for step in range(1, 6):
        log.write(record_of(step, **{"train/seconds": 100.0 * step}))
    log.close()
    log = MetricsLog(tmp_path, 3)
    assert log.seconds == 300  # up to the resumed step
    log.write(record_of(4, **{"train/seconds": 410.0}))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    times = [point.wall_time for point in events.Scalars("train/loss")]
    # TensorBoard's relative time does not include the pause between two runs.
    np.testing.assert_allclose(np.subtract(times, times[0]), [0, 100, 200, 310], atol=1e-3)


def test_tensorboard_has_the_scalars_of_a_record_under_its_step(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    log.write(record_of(10, **{"eval/top1_error": 0.25}))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/top1_error", "train/loss"]
    assert curve(tmp_path, "eval/top1_error") == {10: 0.25}


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from train.run.metrics import MetricsLog

log = MetricsLog(Path(sys.argv[1]), 0)
step = 0
while True:
    step += 1
    log.write({"step": step, "epoch": step / 11, "train/loss": 1 / step})
    print(step, flush=True)
"""


def test_written_records_survive_a_kill_as_complete_lines(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, tmp_path],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        for _ in range(200):
            run.stdout.readline()
        os.kill(run.pid, signal.SIGKILL)
        said = 200 + len(run.stdout.read().split())
    steps = [record["step"] for record in lines_of(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert said <= len(steps) <= said + 1
    write_records(tmp_path, 200, 202)  # TensorBoard may lack the last ones
    assert curve(tmp_path).keys() == set(range(1, 203))


def evaluated(steps_and_errors: list[tuple[int, float | None]]) -> list[Record]:
    return [
        record_of(step)
        | {"train/images_per_second": 1000.0 + step, "train/seconds": step / 10}
        | ({} if error is None else {"eval/top1_error": error, "eval/loss": 2 * error})
        for step, error in steps_and_errors
    ]


def score_of(records: list[Record]) -> float:
    return results(records, ELEVEN_STEPS)["top1_error_median_last5"]


def test_the_score_is_the_median_of_the_last_five_epochs():
    errors = [0.9, 0.01, 0.5, 0.1, 0.3, 0.2, 0.4]
    records = evaluated([(11 * (epoch + 1), error) for epoch, error in enumerate(errors)])
    assert score_of(records) == 0.3  # of 0.5, 0.1, 0.3, 0.2 and 0.4
    assert results(records, ELEVEN_STEPS)["num_epochs_in_median"] == 5


def test_training_records_do_not_affect_the_score():
    records = evaluated([(10, None), (11, 0.2), (20, None), (22, 0.4), (30, None)])
    assert score_of(records) == pytest.approx(0.3, rel=1e-12)


def test_only_the_last_evaluation_between_epochs_counts():
    # A run evaluates at its last step: the first one stopped at step 5, the second at step 25.
    records = evaluated([(5, 0.9), (11, 0.2), (22, 0.4), (25, 0.3)])
    assert score_of(records) == 0.3  # of 0.2, 0.4 and 0.3


def test_the_results_of_a_short_run_say_what_they_cover():
    records = evaluated([(10, None), (11, 0.2), (20, None), (22, 0.1), (33, 0.1), (44, 0.4)])
    assert results(records, ELEVEN_STEPS) == {
        "top1_error_median_last5": pytest.approx(0.15),
        "num_epochs_in_median": 4,
        "top1_error_last": 0.4,
        "top1_error_best": 0.1,
        "epoch_of_best": 3,  # the newest of equals
        "eval_loss_last": 0.8,
        "seconds": 4.4,
        "images_per_second": 1021,  # the median, since the first step includes a start
    }


def test_the_top5_error_is_a_result_if_it_was_measured():
    records = [record | {"eval/top5_error": 0.01} for record in evaluated([(11, 0.2)])]
    assert results(records, ELEVEN_STEPS)["top5_error_last"] == 0.01


def test_a_record_of_an_earlier_version_has_results():
    """The run finished its training with a version that did not log these, and was killed."""
    record = {"step": 11, "epoch": 1.0, "train/images_per_second": 9.0, "eval/top1_error": 0.2}
    found = results([record], ELEVEN_STEPS)
    assert (found["eval_loss_last"], found["seconds"]) == (None, 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_the_score_matches_numpys_median(errors: list[float]):
    records = evaluated([(7 * (epoch + 1), error) for epoch, error in enumerate(errors)])
    timeline = Timeline(digits().experiment, 7 * digits().experiment.batch_size)
    expected = np.median(errors[-5:])
    found = results(records, timeline)
    assert found["top1_error_median_last5"] == pytest.approx(expected, rel=1e-12)
    assert found["num_epochs_in_median"] == min(len(errors), 5)


def test_means_are_taken_over_parts_of_an_epoch():
    errors = ((0.05, 0.8), (0.1, 0.6), (0.11, 0.5), (0.3, None), (1.0, 0.25), (1.5, 0.1))
    some: list[Record] = [{"epoch": epoch, "train/top1_error": error} for epoch, error in errors]
    some.append({"epoch": 2.0})  # without an error
    tenths = [(0.1, 0.7), (0.11, 0.5), (1.0, 0.25), (1.5, 0.1)]
    assert means(some, "train/top1_error", 10) == [pytest.approx(pair) for pair in tenths]
    assert means(some, "train/top1_error") == [
        pytest.approx((1.0, 2.15 / 4)), pytest.approx((1.5, 0.1)),
    ]  # fmt: skip
