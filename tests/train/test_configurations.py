"""Random command lines: each is refused in one line or yields a plan, and changes no other run."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.command_line import parse_run
from train.config import Experiment, Machine, Output
from train.data.dataset import open_dataset
from train.errors import RunError, UsageError, flag
from train.plan import make_plan
from train.recipes import RECIPES, digits
from train.run.flags import flags_of
from train.run.metrics import MetricsLog
from train.run.workdir import claim
from train.step.optimizer import make_optimizer
from train.step.workers import make_workers

NUMBERS = ["0", "1", "2", "3", "8", "16", "64", "0.5", "1e-9", "1e30", "-1", "4294967296"]
ODD = ["nan", "inf", "", " ", "x", "None", "--", "1e999", "ä", "0x10", "\N{SNOWMAN}", "../..", "\n"]
SPECIFIC = {
    "data": ["synthetic"],
    "dataset": ["digits", "mnist", "../digits", "a/b:c", "imagenet2012"],
    "data_dir": ["/dev/null", "/dev/null/below"],  # in a usable folder the digits would be prepared
    "init_from": ["/dev/null", "nowhere"],
    "coordinator_address": ["localhost:1"],
    "milestones": ["1 2", "2 1", "30 60 80"],
    "mean": ["0.5", "0.4 0.5 0.6", "124"],
    "std": ["0.2", "0.2 0.3 0.4", "0 0 0"],
    "seeds": ["0 1", "1 1"],
}
FLAGS = {one.field: one for part in (Experiment, Machine, Output) for one in flags_of(part)}
FIELDS = [name for name in FLAGS if name != "workdir"]


def flags_with(*values: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    """Up to five flags, each with one of its field's values or of `values`."""

    def valued(names: list[str]) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
        return st.tuples(*(st.tuples(st.just(name), value_of(name)) for name in names))

    def value_of(name: str) -> st.SearchStrategy[str]:
        own = [*SPECIFIC.get(name, []), *FLAGS[name].choices]
        only_own = name == "data_dir" or (own and len(values) < 5)
        return st.sampled_from(own if only_own else [*own, *values])

    return st.lists(st.sampled_from(FIELDS), max_size=5, unique=True).flatmap(valued).map(list)


OUTCOMES: list[str] = []


@pytest.fixture(scope="module")
def trained(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a digits run that has started training and has a checkpoint."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with claim(digits().replace(workdir=workdir, data_dir=digits_dir)):
        MetricsLog(workdir, 0).close()
    (workdir / "checkpoints" / "7").mkdir(parents=True)
    (workdir / "checkpoints" / "7" / "manifest.json").write_text("{}")
    return workdir


def files_of(workdir: Path) -> dict[str, bytes]:
    files = (path for path in workdir.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def prepare(args: list[str]) -> str:
    """Do everything that a run does before training; return its plan."""
    config = parse_run(args)
    dataset = open_dataset(config)
    recipe = config.experiment.large_minibatch_recipe(len(dataset.train))
    workers = make_workers(config)
    make_optimizer(recipe.schedule(), config.experiment.optimizer)
    first, last = (float(recipe.schedule()(np.int32(step))) for step in (0, recipe.num_steps - 1))
    assert math.isfinite(first)
    assert math.isfinite(last)
    with claim(config):
        return make_plan(config, dataset, workers).describe()


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    recipe=st.sampled_from([*RECIPES, "digits", "digits", "digits", ""]),
    flags=flags_with("1", "2", "8", "64") | flags_with("8", "16") | flags_with(*NUMBERS, *ODD),
    is_new=st.booleans(),
)
def test_no_command_line_ends_in_a_traceback_or_touches_another_run(
    trained: Path,
    digits_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    recipe: str,
    flags: list[tuple[str, str]],
    is_new: bool,
):
    workdir = tmp_path_factory.mktemp("new") / "run" if is_new else trained
    before = files_of(trained)
    args: list[Any] = [recipe] if recipe else []
    args += ["--workdir", str(workdir), "--data-dir", str(digits_dir)]
    for name, value in flags:
        if FLAGS[name].kind is bool:
            args += [flag(name)]
        else:
            args += [flag(name), *(value.split() if FLAGS[name].is_list else [value])]
    refusal = ""
    try:
        OUTCOMES.append(prepare(args))
    except (UsageError, RunError) as error:
        refusal = str(error)
        OUTCOMES.append("")
        assert refusal
    assert "\n" not in refusal
    assert files_of(trained) == before


def test_random_command_lines_include_valid_and_invalid_ones():
    assert len(OUTCOMES) >= 200
    assert sum(map(bool, OUTCOMES)) >= 20
    assert OUTCOMES.count("") >= 20
