"""Cost of schedules, with the fast part of `benchmarks/schedule.py`."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "schedule.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_schedule", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["warmup, hold", "warmup, piecewise", "warmup, cosine"])
def test_schedules_need_no_more_instructions_than_those_of_optax(benchmark, name):
    ours, theirs = benchmark.PAIRS[name]
    counts = [benchmark.instructions(schedule) for schedule in (ours, theirs)]
    assert 3 <= counts[0] <= counts[1]


def test_a_million_steps_take_well_under_a_second(benchmark):
    spent = benchmark.million(benchmark.PAIRS["warmup, piecewise"][0])
    assert spent["then_s"] < 0.1
