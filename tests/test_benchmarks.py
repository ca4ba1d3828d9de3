"""The page of measurements says what the readings say, and the scripts read what they claim to."""

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def test_the_page_is_made_of_the_committed_readings():
    page = runpy.run_path(str(BENCHMARKS / "page.py"))["page"]
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == page()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which finds its neighbours as if it were run by itself."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def end_to_end(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("end_to_end")


def test_a_gpus_kernels_are_told_apart_by_kind(gpu: Any):
    hlo = """HloModule jit_train_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused_reduce (p: f32[8,4]) -> f32[8] {
  %p = f32[8,4]{1,0} parameter(0)
  %multiply.1 = f32[8,4]{1,0} multiply(%p, %p)
  ROOT %reduce.1 = f32[8]{0} reduce(%multiply.1, %p), dimensions={1}, to_apply=%sum
}

%fused_transpose (q: f32[8,4]) -> f32[4,8] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %transpose.1 = f32[4,8]{1,0} transpose(%q), dimensions={1,0}
}

ENTRY %main (x: f32[8,4]) -> (f32[8], f32[4,8]) {
  %x = f32[8,4]{1,0} parameter(0)
  %cudnn-conv-bw-filter.3 = (f32[8,4]{1,0}, u8[16]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convBackwardFilter"
  %gemm.7 = (f32[8,4]{1,0}, s8[16]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm"
  %topk.1 = (f32[8,4]{1,0}, s32[8]{0}) custom-call(%x), custom_call_target="__gpu$TopK"
  %input_reduce_fusion.2 = f32[8]{0} fusion(%x), kind=kInput, calls=%fused_reduce
  %transpose_fusion = f32[4,8]{1,0} fusion(%x), kind=kInput, calls=%fused_transpose
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%input_reduce_fusion.2), to_apply=%sum
  %while.1 = (f32[8]{0}) while(%x), condition=%sum, body=%sum
  ROOT %loop_add_fusion.9 = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%sum
}
"""  # noqa: E501
    kinds = gpu.kinds_of(hlo)
    assert {name: kinds[name] for name in list(kinds)[-8:-1]} == {
        "x": "copy or transpose",
        "cudnn-conv-bw-filter.3": "convolution or matrix product",
        "gemm.7": "convolution or matrix product",
        "topk.1": "other",
        "input_reduce_fusion.2": "reduction",
        "transpose_fusion": "copy or transpose",
        "all-reduce-start.1": "all-reduce",
    }
    assert kinds["loop_add_fusion.9"] == "elementwise"
    assert "while.1" not in kinds  # what is inside is counted


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_wgrad_implicit_gemm_indexed_bf16", "convolution or matrix product"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NHWC", "convolution or matrix product"),
        ("input_reduce_fusion_12", "reduction"),
        ("loop_convert_fusion_3", "elementwise"),
        ("MemcpyD2D", "copy or transpose"),
        ("something_else", "other"),
    ],
)
def test_a_kernel_that_no_instruction_is_named_after_goes_by_its_name(
    gpu: Any, kernel: str, kind: str
):
    assert gpu.kind_of({gpu.named(kernel)}) == kind


def test_what_xla_compiles_here_has_its_kinds(gpu: Any):
    @jax.jit
    def program(x: jax.Array, w: jax.Array) -> Any:
        return x @ w, x.sum(0), jnp.exp(x) * 2

    compiled = program.lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()
    kinds = set(gpu.kinds_of(compiled.as_text()).values())
    assert {"convolution or matrix product", "reduction", "elementwise"} <= kinds


def test_a_gpus_time_is_that_of_its_streams_and_not_of_the_host_that_launches(gpu: Any):
    hlo = """HloModule jit_train_step, is_scheduled=true

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %cudnn-conv.3 = (f32[8,4]{1,0}, u8[16]{0}) custom-call(%x), custom_call_target="__cudnn$convForward"
  ROOT %loop_add_fusion.9 = f32[8,4]{1,0} add(%x, %x)
}
"""  # noqa: E501

    def event(name: str, nanoseconds: float, **stats: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, duration_ns=nanoseconds, stats=stats.items())

    def plane(name: str, **lines: list[SimpleNamespace]) -> SimpleNamespace:
        named = [SimpleNamespace(name=line, events=events) for line, events in lines.items()]
        return SimpleNamespace(name=name, lines=named)

    graph = {"hlo_op": "command_buffer_1", "hlo_module": "jit_train_step"}
    kernels = [
        event("sm90_xmma_fprop", 6e6, hlo_op="cudnn-conv.3", hlo_module="jit_train_step"),
        event("loop_add_fusion_9", 2e6, **graph),
        event("MemcpyD2D", 2e6, **graph),
        event("loop_add_fusion_9", 5e6, hlo_op="loop_add_fusion.9", hlo_module="jit_other"),
    ]
    host = plane("/host:CPU", main=[event("cudnn-conv.3", 30e6, hlo_op="cudnn-conv.3")])
    device = plane("/device:GPU:0", Stream=kernels, Steps=[event("1", 10e6)])
    result = gpu.time_by_kind(SimpleNamespace(planes=[host, device]), hlo, 2)
    assert result["device_seconds_per_step"] == pytest.approx(5e-3)
    assert result["kernels_per_step"] == 1.5
    shares = {
        "convolution or matrix product": 0.6,
        "elementwise": 0.2,
        "copy or transpose": 0.2,
    }
    assert result["shares"] == pytest.approx(shares)
    assert result["longest"][0]["name"] == "cudnn-conv.3"
    on_cpu = gpu.time_by_kind(SimpleNamespace(planes=[host]), hlo, 2)
    assert on_cpu["device_seconds_per_step"] == pytest.approx(15e-3)


def test_earlier_parts_stay_if_they_were_measured_on_the_same_device(gpu: Any, tmp_path: Path):
    path = tmp_path / "gpu.json"
    report = {"hardware": {"device": "NVIDIA H200"}, "rounds": 4, "parts": {}}
    assert gpu.earlier_parts(path, report) == {}
    gpu.write(path, report | {"parts": {"step": {"took_seconds": 1.0}}})
    assert gpu.earlier_parts(path, report) == {"step": {"took_seconds": 1.0}}
    other = report | {"hardware": {"device": "NVIDIA H100 80GB HBM3"}}
    assert gpu.earlier_parts(path, other) == {}


def test_the_device_waits_from_the_end_of_a_step_to_the_next(end_to_end: Any):
    steps = [(0.0, 1.0), (1.5, 2.0), (2.0, 4.0), (5.0, 6.0)]
    assert end_to_end.spent(steps) == 5
    assert end_to_end.waited(steps) == 0.5 + 0 + 1


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What gpu.py writes on a CPU where the digits cannot be written, for two of its parts."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "file").touch()
    out = folder / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out)]
    run = subprocess.run(
        [*command, "--parts", "digits", "checkpointing"],
        env=os.environ | {"TFDS_DATA_DIR": str(folder / "file"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_a_part_that_fails_is_recorded_and_the_others_go_on(readings: dict[str, Any]):
    digits, checkpointing = readings["parts"]["digits"], readings["parts"]["checkpointing"]
    assert "--data-dir" in digits["error"]
    assert "error" not in checkpointing
    assert checkpointing["num_steps"] == 20
    assert 0 < checkpointing["longest_save_seconds"] < checkpointing["seconds"]


def test_a_part_that_takes_too_long_is_ended(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(gpu.PARTS, "step", (0.1, gpu.steps))
    result = gpu.run_part("step", True, tmp_path)
    assert result["error"] == "not done after 1.0 s"
    assert "settings" not in result


def test_a_save_takes_what_the_steps_around_it_do_not(gpu: Any):
    rows = [(10, 1.0, 200.0), (20, 2.5, 200.0), (30, 3.0, 400.0), (40, 5.0, 100.0)]
    records = [
        {
            "step": step,
            "train/seconds": seconds,
            "train/images_per_second": rate,
            "train/num_examples_seen": 20 * step,
        }
        for step, seconds, rate in rows
    ]
    assert gpu.save_seconds(records, 10) == [0.5, 0.0, 0.0]
    assert gpu.save_seconds(records, 20) == [0.0]


def page_with(readings: dict[str, Any], folder: Path) -> str:
    """The page as it is with these readings of a GPU beside the committed ones."""
    for file in (*BENCHMARKS.glob("*.json"), BENCHMARKS / "page.py"):
        shutil.copy(file, folder)
    (folder / "gpu.json").write_text(json.dumps(readings), encoding="utf-8")
    return runpy.run_path(str(folder / "page.py"))["page"]()


def test_the_page_tells_a_cpus_readings_from_a_gpus(readings: dict[str, Any], tmp_path: Path):
    page = page_with(readings, tmp_path)
    assert "No figure of a GPU has\nbeen measured yet" in page
    assert "20 steps with a checkpoint every 10" in page
    assert "digits failed: RuntimeError: python -m train: --data-dir" in page


def test_the_page_has_a_gpus_steps_beside_its_peak(readings: dict[str, Any], tmp_path: Path):
    subjects = {"optax-warmup": {"images_per_second": 5000.0}, "flax": {"images_per_second": 4e3}}
    alone = {"torch, compiled": {"images_per_second": 2500.0}}
    parts = {
        "step": {
            "settings": [
                {"batch_size": 256, "subjects": subjects, "missing": {}},
                {"batch_size": 256, "subjects": alone, "missing": {"keras": "no memory"}},
            ]
        },
        "bounds": {
            "batch_size": 256,
            "images_per_second": 5100.0,
            "model_flops_per_image": 24.6e9,
            "xla_flops_per_image": 23e9,
            "peak_flops": 989e12,
            "mfu": 0.127,
            "bytes_per_image": 0.4e9,
            "copy_bytes_per_second": 3e12,
            "bandwidth_bound_images_per_second": 7500.0,
        },
    }
    on_gpu = readings | {"hardware": readings["hardware"] | {"platform": "gpu"}, "parts": parts}
    page = page_with(on_gpu, tmp_path)
    assert "No figure of a GPU" not in page
    assert "| 256: optax-warmup | 5,000 | 12.4 % | 1.00 |" in page
    assert "| 256: flax | 4,000 | 9.9 % | 0.80 |" in page
    assert "| 256: torch, compiled | 2,500 | 6.2 % | 0.50 |" in page
    assert "keras is missing at 256: no memory" in page
    assert "| images a second at that bandwidth | 7,500 |" in page
