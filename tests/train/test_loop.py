"""Complete runs of `python -m train`, started as a user starts them."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from PIL import Image

from optax_warmup import LargeMinibatchRecipe
from tests.soak import outcome
from train.__main__ import main
from train.config import Config
from train.loop import DONE, run
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state, params_digest

ROOT = Path(__file__).parents[2]
# Four epochs of 11 steps with every part of the paper's schedule: a complete run in seconds.
SHORT = ["--num-epochs", "4", "--warmup-epochs", "1", "--milestones", "2", "3"]
SHORT += ["--checkpoint-every-epochs", "1", "--log-every-steps", "1"]


def environment(digits_dir: Path, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    # The runs of this file share compiled steps.
    clean["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
    clean["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    clean["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    return clean | {"TFDS_DATA_DIR": str(digits_dir), "COLUMNS": "120"} | more


def train(
    workdir: Path, digits_dir: Path, flags: Sequence[str] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train", "--workdir", str(workdir), *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment(digits_dir, **more), capture_output=True, text=True
    )


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def main_job(
    digits_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of the default recipe, with a fake TensorFlow that records its import."""
    folder = tmp_path_factory.mktemp("main")
    trap = folder / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(
        f"open({str(folder / 'imported')!r}, 'w').close()\nraise ImportError('a trap')\n"
    )
    ended = train(folder / "run", digits_dir, PYTHONPATH=str(trap.parent), XLA_FLAGS="")
    assert ended.returncode == 0, ended.stderr
    return folder / "run", ended


def test_the_main_job_learns_the_digits(main_job: tuple[Path, Any]):
    workdir, ended = main_job
    result = summary(workdir)
    assert result["top1_error_median_last5"] <= 0.02
    assert result["num_steps"] == 90 * (1437 // 128)
    assert result["num_examples_seen"] == result["num_steps"] * 128
    assert re.fullmatch("[0-9a-f]{64}", result["params_digest"])
    assert "finished: 990 steps" in ended.stdout
    assert f"results: {workdir}/summary.json" in ended.stdout


def test_the_main_job_prints_its_plan_first(main_job: tuple[Path, Any]):
    said = main_job[1].stdout.split("step 10/990")[0]
    for words in (
        "resnet8", "k = 8 workers x n = 16 images, kn = 128", "η = 0.0125", "kη = 0.1",
        "990 steps = 90 epochs x 11 steps", "1437 training and 360 test images", "10 classes",
        "55 steps (5 epochs)", "330", "660", "880", str(main_job[0]),
    ):  # fmt: skip
        assert words in said


def test_the_main_job_does_not_import_tensorflow(main_job: tuple[Path, Any]):
    assert not (main_job[0].parent / "imported").exists()


def test_the_main_job_writes_no_escape_codes_without_a_terminal(main_job: tuple[Path, Any]):
    assert "\x1b" not in main_job[1].stdout
    assert len(main_job[1].stdout.splitlines()) < 60


def test_the_main_job_writes_every_promised_file(main_job: tuple[Path, Any]):
    workdir = main_job[0]
    with Image.open(workdir / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 600
    assert list((workdir / "tensorboard").glob("events.*"))
    assert json.loads((workdir / "config.json").read_text())["num_workers"] == 8
    assert not list(workdir.glob("*.tmp"))
    logged = records(workdir)
    steps = [record["step"] for record in logged]
    assert steps == sorted({*range(10, 991, 10), *range(11, 991, 11)})
    evaluated = [record for record in logged if "eval/top1_error" in record]
    assert [record["epoch"] for record in evaluated] == list(range(1, 91))
    assert {record["eval/num_examples"] for record in evaluated} == {360}
    assert all(record["eval/top5_error"] <= record["eval/top1_error"] for record in evaluated)
    assert all(record["train/images_per_second"] > 0 for record in logged)


def test_the_applied_learning_rate_matches_the_paper(main_job: tuple[Path, Any]):
    """The paper's schedule: from 0.0125 to 0.1 in 5 epochs, then ÷ 10 at epochs 30, 60 and 80."""
    for record in records(main_job[0]):
        update = record["step"] - 1  # index of the record's update, from 0
        rate = 0.0125 + (0.1 - 0.0125) * min(update / 55, 1)
        rate /= 10 ** sum(update >= epoch * 11 for epoch in (30, 60, 80))
        assert record["train/learning_rate"] == pytest.approx(rate, rel=1e-6)
    recipe = LargeMinibatchRecipe(
        num_examples=1437, num_workers=8, batch_size_per_worker=16, base_batch_size=16,
        base_learning_rate=0.0125,
    )  # fmt: skip
    assert recipe.num_steps == 990


def test_rerun_reports_that_the_run_is_finished(
    main_job: tuple[Path, Any], digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = main_job[0]
    before = (workdir / "metrics.jsonl").read_text()
    assert main(["--workdir", str(workdir), "--data-dir", str(digits_dir)]) == 0
    assert "already finished: 990 steps" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_eight_devices_give_the_same_losses(
    main_job: tuple[Path, Any], digits_dir: Path, tmp_path: Path
):
    """The main job runs on one device; this process has eight."""
    flags = ["--num-steps", "20", "--log-every-steps", "1", "--data-dir", str(digits_dir)]
    assert main([*flags, "--workdir", str(tmp_path / "run")]) == 0
    eight = records(tmp_path / "run")
    assert len(eight) == 20
    first = records(main_job[0])[:3]
    assert first[-1]["step"] == 20
    for one in first:
        assert one["train/loss"] == pytest.approx(eight[one["step"] - 1]["train/loss"], rel=1e-4)


@pytest.fixture(scope="module")
def undisturbed(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert train(workdir, digits_dir, SHORT).returncode == 0
    return workdir


def interrupt(workdir: Path, digits_dir: Path, at_step: int) -> tuple[int, str]:
    """Start a short run and send it SIGINT when it has logged `at_step` steps."""
    command = [sys.executable, "-m", "train", "--workdir", str(workdir), *SHORT]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(digits_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        log = workdir / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not log.exists() or log.read_text().count("\n") < at_step:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
        return process.returncode, said


def test_interrupted_run_resumes_to_the_same_result(
    undisturbed: Path, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Other signals, kills and changes of devices are tested in test_faults."""
    workdir = tmp_path / "run"
    code, said = interrupt(workdir, digits_dir, at_step=13)
    assert code == 75
    assert "stopped after step" in said.splitlines()[-1]
    assert not (workdir / "summary.json").exists()
    too_short = ["--workdir", str(workdir), "--data-dir", str(digits_dir), "--num-steps", "8"]
    assert main([*too_short, *SHORT]) == 2
    assert "--num-steps is 8; it must be more than" in capsys.readouterr().err
    resumed = train(workdir, digits_dir, SHORT)
    assert resumed.returncode == 0, resumed.stderr
    resuming = re.search(r"resuming after step (\d+)", resumed.stdout)
    assert resuming
    assert 13 <= int(resuming[1]) < 44
    assert outcome(workdir) == outcome(undisturbed)


def test_resuming_with_another_seed_is_refused(
    undisturbed: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    other = ["--workdir", str(undisturbed), "--data-dir", str(digits_dir), *SHORT, "--seed", "1"]
    assert main(other) == 2
    said = capsys.readouterr().err
    assert "--seed was 0 and is now 1" in said
    assert said.count("\n") == 1


def test_experiments_can_replace_optimizer_and_initial_state(
    digits_config: Callable[..., Config],
):
    """Parameters that start at 1 end at 1 with an optimizer whose updates are zero."""
    states: list[TrainState] = []

    def ones(*args: Any) -> TrainState:
        state = initial_state(*args)
        params = jax.tree.map(jnp.ones_like, state.network.params)
        network = dataclasses.replace(state.network, params=params)
        states.append(dataclasses.replace(state, network=network))
        return states[0]

    def still(
        schedule: optax.Schedule, name: str, *, momentum: float, weight_decay: float
    ) -> optax.GradientTransformation:
        assert (name, momentum, weight_decay) == ("sgd", 0.5, 1e-3)
        return optax.chain(make_optimizer(schedule), optax.scale(0.0))

    config = digits_config(num_steps=1, momentum=0.5, weight_decay=1e-3)
    assert run(config, optimizer=still, start=ones) == DONE
    shapes = jax.eval_shape(lambda: states[0].network.params)
    expected = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    assert summary(config.output.workdir)["params_digest"] == params_digest(expected)


def test_seconds_of_training_leave_out_compilation(digits_config: Callable[..., Config]):
    seconds = 5.0  # far longer than two steps take

    def slow_to_trace(
        schedule: optax.Schedule, name: str, *, momentum: float, weight_decay: float
    ) -> optax.GradientTransformation:
        optimizer = make_optimizer(schedule)

        def update(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            time.sleep(seconds)  # while the step is traced
            return optimizer.update(updates, state, params)

        return optax.GradientTransformation(optimizer.init, update)

    config = digits_config(num_steps=2, log_every_steps=1)
    assert run(config, optimizer=slow_to_trace) == DONE
    assert records(config.output.workdir)[0]["train/seconds"] < seconds
