"""The largest n that fits into memory, and the memory of a compiled step."""

import math
import re
import shutil
from pathlib import Path

import jax
import pytest

from train.data.dataset import size_of
from train.memory import Options, main
from train.planning.memory import compile_step, largest_that_fits, memory_of
from train.step.optimizer import make_optimizer
from train.step.state import abstract_state
from train.step.workers import make_workers

MEGABYTE = 1_000_000
SMALL = ["digits", "--num-classes", "10"]


@pytest.mark.parametrize("largest", [1, 7, 31, 32, 33, 64, 117, 5000, 123_456])
def test_few_compilations_find_the_largest_n(largest: int):
    tried: list[int] = []

    def num_bytes(n: int) -> int:
        tried.append(n)
        return 1000 + 24 * n + n % 7  # linear except for alignment

    assert largest_that_fits(num_bytes, num_bytes(largest)) == largest
    assert {largest, largest + 1} <= set(tried)
    assert len(tried) - 1 <= 7


def test_largest_n_is_found_if_bytes_jump_or_are_unknown():
    assert largest_that_fits(lambda n: n if n < 50 else 10 * n, 60) == 49
    assert largest_that_fits(lambda n: 10 + n, 10) == 0
    tried: list[int] = []

    def num_bytes(n: int) -> float:
        tried.append(n)
        return n if n < 45 else math.inf

    assert largest_that_fits(num_bytes, 1000) == 44
    assert len(tried) <= 7


@pytest.mark.parametrize("bound", [1, 20, 32, 33, 1437])
def test_no_n_beyond_the_bound_is_tried(bound: int):
    tried: list[int] = []

    def num_bytes(n: int) -> float:
        tried.append(n)
        return 100 + n

    assert largest_that_fits(num_bytes, 10**9, bound) == bound
    assert max(tried) == bound
    assert len(tried) <= 4
    assert largest_that_fits(num_bytes, 110, bound) == min(bound, 10)


def test_step_memory_has_state_minibatch_and_activations():
    """Each of the 8 devices from tests/conftest.py has one worker."""
    options = Options(recipe="digits", num_classes=10)
    config = options.config_for(8, 16)
    _, memory = compile_step(config, 10, lambda _: 0.1, jax.devices())
    workers = make_workers(config)
    optimizer = make_optimizer(lambda _: 0.1)
    state = abstract_state(config.experiment, 10, optimizer, workers)
    # Each array takes a few bytes more than its contents.
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.state == pytest.approx(num_bytes, rel=0.01)
    assert memory.minibatch == 16 * (8 * 8 * 1 + 4)
    # The backward pass needs at least the stem's output, in float32.
    assert memory.activations > 16 * 8 * 8 * 16 * 4
    assert memory.training == memory.step + 2 * memory.minibatch


def test_the_command_reports_the_largest_n_and_the_reason(capsys: pytest.CaptureFixture[str]):
    assert main([*SMALL, "--memory-bytes", str(6 * MEGABYTE)]) == 0
    said = capsys.readouterr().out
    reason = re.search(r"n = (\d+) is the largest that fits, .* n = (\d+) needs .* too much", said)
    assert reason is not None, said
    n, more = int(reason[1]), int(reason[2])
    assert more == n + 1
    together = {
        int(row[0]): float(row[-2])
        for row in map(str.split, said.splitlines())
        if row[0].isdecimal() and row[-1] == "MB"
    }
    assert together[n] <= 6 < together[more]
    assert "--accumulation-steps" in said


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (
            ["--workers-per-device", "200"],
            2,
            "digits has 1437 training images, fewer than the 1600",
        ),
        (["--dataset", "nothing"], 2, "--dataset nothing is not prepared"),
        (["--memory-bytes", "1000"], 1, "not even n = 1 fits"),
        (["--workers-per-device", "0"], 2, "--workers-per-device is 0"),
        (["--num-devices", "0"], 2, "--num-devices is 0; it must be at least 1"),
        (["--accumulation-steps", "3"], 2, "--workers-per-device is 1; it must be a multiple"),
    ],
)
def test_impossible_requests_are_reported_in_one_line(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*SMALL, *args]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_the_table_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.memory.terminal_width", lambda: 40)
    assert main([*SMALL, "--memory-bytes", str(10**11)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert ["n", "together"] in [line.split() for line in lines]


def test_the_data_set_bounds_n(capfd: pytest.CaptureFixture[str]):
    """Without a bound the compiler would take seconds for each n, and ask to file a bug."""
    assert main(["digits", "--memory-bytes", str(10**11)]) == 0
    said = capfd.readouterr()
    assert "n = 179 is the largest: digits has 1437 training images for k = 8 worker(s)" in said.out
    assert "The data set is the bound, not the memory" in said.out
    assert "file a bug" not in said.err


def test_a_large_minibatch_compiles_quietly(capfd: pytest.CaptureFixture[str]):
    options = Options(recipe="digits")
    compile_step(options.config_for(1, 300_000), 10, lambda _: 0.1, jax.devices()[:1])
    assert "file a bug" not in capfd.readouterr().err


def test_classes_and_images_are_those_of_the_data_set(digits_dir: Path):
    assert Options(recipe="digits").data() == ("digits", 10, 1437)
    assert Options(recipe="imagenet", data_dir=digits_dir).data()[1:] == (1000, 1_281_167)
    assert Options(recipe="tfds").data() == ("", 1000, None)
    prepared = Options(recipe="tfds", dataset="digits", data_dir=digits_dir, num_classes=3)
    assert prepared.data() == ("digits", 3, 1437)


def test_the_size_of_a_prepared_data_set_is_read(digits_dir: Path, tmp_path: Path):
    shutil.copytree(digits_dir / "digits", tmp_path / "numbers")
    [info] = (tmp_path / "numbers").glob("*/dataset_info.json")
    info.write_text(info.read_text().replace('"digits"', '"numbers"'))
    assert size_of("numbers", tmp_path) == (10, 1437)
    assert size_of("fashion_mnist", tmp_path) == (10, 60_000)  # known without preparation


def test_simulated_devices_share_the_machines_memory():
    one, _ = memory_of(jax.devices()[0], 1)
    eighth, _ = memory_of(jax.devices()[0], 8)
    assert eighth == pytest.approx(one / 8, rel=0.5)  # other processes allocate memory too
    assert one > 100 * MEGABYTE
