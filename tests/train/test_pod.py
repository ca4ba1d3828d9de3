"""Predictions for TPU slices and GPU clusters, without the hardware."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.planning.cost_model import AllReduce, Schedule
from train.planning.prediction import base_of, draw, predict_slice, table
from train.pod import main

HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
ASSUMPTIONS = {
    "clock_hz": 1e9, "hbm_bytes": 100, "link_bandwidth": 1e9, "num_links": 2, "latency": 0,
}  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["imagenet", *args]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "either --topology or --step-seconds"),
        (["--topology", "v5e:2x4", "--step-seconds", "1"], "either --topology"),
        (["--topology", "v9:2x4"], "one of v4, v5e, v5p, v6e"),
        (["--topology", "v5e:2x4", "v6e:2x4"], "one of v4, v5e, v5p, v6e"),
        (["--topology", "v5e:2x4", "--clock-hz", "0"], "--clock-hz is 0"),
        (["--topology", "v5e:2x4", "--overlap", "1.5"], "--overlap is 1.5"),
        (["--step-seconds", "-1"], "--step-seconds is -1"),
        (["--step-seconds", "1", "--num-gpus", "12"], "--num-gpus has 12"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
):
    assert message in refused(capsys, *args)


@pytest.mark.skipif(HAS_COMPILER, reason="the TPU compiler is installed")
def test_missing_compiler_is_reported_with_the_install_command(capsys: pytest.CaptureFixture[str]):
    assert "pip install" in refused(capsys, "--topology", "v5e:2x4")


def predicted(name: str, *reductions: AllReduce, **options: Any) -> Any:
    schedule = Schedule(3_000_000, reductions)
    defaults: dict[str, Any] = {
        "workers_per_device": 1, "batch_size_per_worker": 32, "overlap": None,
    }  # fmt: skip
    return predict_slice(name, schedule, 101, ASSUMPTIONS, **defaults | options)


def test_a_slice_waits_for_communication_that_is_not_hidden():
    hidden, exposed = AllReduce(1_000_000, 2_000_000, 5), AllReduce(4_000_000, 0, None)
    prediction = predicted("v5e:2x2", hidden, exposed, workers_per_device=3)
    assert prediction.num_workers == 12
    # Rings of 4 chips: 6 quarters of the bytes at 2e9 bytes per second.
    assert prediction.communication_seconds == pytest.approx(0.75e-3 + 3e-3)
    assert prediction.step_seconds == pytest.approx(3e-3 + 3e-3)
    assert prediction.images_per_second == pytest.approx(12 * 32 / 6e-3)
    assert (prediction.num_all_reduces, prediction.communication_cycles) == (2, 5)
    assert prediction.fits is False
    assert predicted("v5e:2x2", exposed, overlap=1.0).step_seconds == pytest.approx(3e-3)


def test_efficiency_compares_images_per_second_per_chip():
    reduction = AllReduce(8_000_000, 0, None)
    small, large = predicted("v5e:2x4", reduction), predicted("v5e:4x8", reduction)
    assert base_of([large, small]) is small
    assert large.efficiency(small) == pytest.approx((3 + 7) / (3 + 7.75))


@pytest.mark.parametrize("num_bytes", [8_000, 8_000_000_000])
def test_the_plot_has_room_for_any_efficiency(num_bytes: int):
    reduction = AllReduce(num_bytes, 0, None)
    predictions = [predicted(name, reduction, overlap=0.9) for name in ("v5e:2x4", "v5e:16x16")]
    slower = dataclasses.replace(predictions[1], exposed_seconds=100 * num_bytes / 1e9)
    axes = draw([predictions[0], slower], kind="v5e", title="t").axes[0]
    bottom, top = axes.get_ylim()
    assert bottom <= 80
    for line in axes.lines:
        assert all(bottom < y < top for y in np.asarray(line.get_ydata()))


def test_gpus_are_predicted_from_a_measured_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--step-seconds", "0.1", "--num-gpus", "16", "--model", "resnet18", "--latency", "0"]
    assert main(["imagenet", *args, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "pod.json").read_text())
    eight, sixteen = report["predictions"]
    # ResNet-18 has 11,689,512 parameters and 9,600 running averages.
    num_bytes = 4 * (11_689_512 + 9_600)
    assert sixteen["reduced_bytes"] == num_bytes
    assert eight["exposed_seconds"] == pytest.approx(1.75 * num_bytes / 450e9)
    assert sixteen["step_seconds"] == pytest.approx(
        0.1 + 1.75 * num_bytes / 450e9 + num_bytes / 8 / 50e9
    )
    assert eight["efficiency"] == 1
    assert sixteen["efficiency"] == pytest.approx(eight["step_seconds"] / sixteen["step_seconds"])
    assert sixteen["num_workers"] == 16
    assert (tmp_path / "pod.png").read_bytes().startswith(b"\x89PNG")
    assert "efficiency from 8" in capsys.readouterr().out


def test_a_minibatch_larger_than_the_data_set_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--step-seconds", "0.1", "--num-gpus", "32", "64", "--out", str(tmp_path)]
    assert main(["digits", *args]) == 0
    said = capsys.readouterr().out
    assert "32 GPUs: no such run" not in said
    assert (
        "64 GPUs: no such run is possible, since its minibatch of 2048 images is larger than the "
        "1437 training images of digits"
    ) in said
    # The network has digits' ten classes.
    eight = json.loads((tmp_path / "pod.json").read_text())["predictions"][0]
    assert eight["reduced_bytes"] == pytest.approx(4 * 78_000, rel=0.05)


def test_the_table_fits_a_narrow_terminal():
    names = ("v5e:2x4", "v5e:4x4", "v5e:4x8")
    predictions = [predicted(name, AllReduce(8_000_000, 0, None)) for name in names]
    wide, narrow = (table(ASSUMPTIONS, predictions, width) for width in (None, 40))
    assert sorted(narrow.split()) != sorted(wide.split())  # it repeats the labels
    assert set(narrow.split()) == set(wide.split())
    assert all(len(line) <= 40 for line in narrow.splitlines())


@pytest.mark.skipif(not HAS_COMPILER, reason="the TPU compiler is missing: the extra `pod`")
def test_a_step_is_compiled_for_a_slice(tmp_path: Path):
    """Takes a minute."""
    args = ["--topology", "v5e:2x4", "--num-classes", "10", "--batch-size-per-worker", "4"]
    assert main(["digits", *args, "--out", str(tmp_path)]) == 0
    [prediction] = json.loads((tmp_path / "pod.json").read_text())["predictions"]
    assert prediction["num_devices"] == prediction["num_workers"] == 8
    assert 1 <= prediction["num_all_reduces"] <= 2
    # All parameters and statistics, and a few scalars.
    assert prediction["reduced_bytes"] == pytest.approx(4 * 78_000, rel=0.05)
    assert prediction["fits"]
    assert prediction["compute_cycles"] > 1000
