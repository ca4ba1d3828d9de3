"""The benchmarks: their page is up to date, and their scripts measure what they claim to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import end_to_end, gpu, gpu_parts, kernels, main_job, step, tables
from benchmarks.markdown import fill, table
from benchmarks.networks import Setting, trainer

ROOT = Path(__file__).parents[1]
PAGE = "Text.\n\n<!-- table: a -->\n\nold\n\n<!-- end -->\n\n<!-- table: b-2 -->\n<!-- end -->\n"


def test_the_committed_page_is_up_to_date():
    """Run `python -m benchmarks.tables` if this fails."""
    page = tables.PAGE.read_text(encoding="utf-8")
    assert fill(page, tables.make_tables()) == page


def test_tables_are_filled_between_their_markers():
    filled = fill(PAGE, {"b-2": "B", "a": table(["x", "y"], [["one", 1]])})
    assert filled == (
        "Text.\n\n<!-- table: a -->\n\n| x | y |\n| --- | ---: |\n| one | 1 |\n\n<!-- end -->\n\n"
        "<!-- table: b-2 -->\n\nB\n\n<!-- end -->\n"
    )
    assert fill(filled, {"a": "old", "b-2": ""}).count("one") == 0


@pytest.mark.parametrize(
    "names", [{"a": ""}, {"a": "", "b-2": "", "c": ""}, {"a": "", "b": ""}], ids=str
)
def test_each_marker_needs_a_table_and_each_table_a_marker(names: dict[str, str]):
    with pytest.raises(ValueError, match="the page has markers for"):
        fill(PAGE, names)


def test_a_marker_without_an_end_or_twice_is_an_error():
    for page in (PAGE.replace("old\n\n<!-- end -->", "old"), PAGE.replace("b-2", "a")):
        with pytest.raises(ValueError, match="the page has markers for"):
            fill(page, {"a": "", "b-2": ""})


def test_instructions_are_classified_by_kind_of_work():
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
    kinds = kernels.kinds_of(hlo)
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
def test_a_kernel_without_an_instruction_is_classified_by_its_name(kernel: str, kind: str):
    assert kernels.kind_of({kernels.opcode_of(kernel)}) == kind


def test_a_program_compiled_here_has_these_kinds():
    @jax.jit
    def program(x: jax.Array, w: jax.Array) -> Any:
        return x @ w, x.sum(0), jnp.exp(x) * 2

    compiled = program.lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()
    kinds = set(kernels.kinds_of(compiled.as_text() or "").values())
    assert {"convolution or matrix product", "reduction", "elementwise"} <= kinds


def test_gpu_time_is_that_of_its_streams_not_of_the_launching_host():
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
    events = [
        event("sm90_xmma_fprop", 6e6, hlo_op="cudnn-conv.3", hlo_module="jit_train_step"),
        event("loop_add_fusion_9", 2e6, **graph),
        event("MemcpyD2D", 2e6, **graph),
        event("loop_add_fusion_9", 5e6, hlo_op="loop_add_fusion.9", hlo_module="jit_other"),
    ]
    host = plane("/host:CPU", main=[event("cudnn-conv.3", 30e6, hlo_op="cudnn-conv.3")])
    device = plane("/device:GPU:0", Stream=events, Steps=[event("1", 10e6)])
    spent, num_kernels = kernels.device_time(SimpleNamespace(planes=[host, device]), hlo)
    assert num_kernels == 3
    assert spent == {
        ("convolution or matrix product", "cudnn-conv.3"): 6e6,
        ("elementwise", "loop_add_fusion.9"): 2e6,
        ("copy or transpose", "MemcpyD2D"): 2e6,
    }
    spent, _ = kernels.device_time(SimpleNamespace(planes=[host]), hlo)
    assert spent.total() == 30e6


def test_earlier_parts_are_kept_for_the_same_device(tmp_path: Path):
    path = tmp_path / "gpu.json"
    same = {"hardware": {"device": "NVIDIA H200"}, "versions": {}, "python": "3.12", "rounds": 4}
    assert gpu.earlier_parts(path, same) == {}
    path.write_text(json.dumps(same | {"parts": {"step": {"took_seconds": 1.0}}}))
    assert gpu.earlier_parts(path, same) == {"step": {"took_seconds": 1.0}}
    assert gpu.earlier_parts(path, same | {"hardware": {"device": "NVIDIA H100"}}) == {}


def test_the_device_waits_from_the_end_of_a_step_to_the_begin_of_the_next():
    steps = [(0.0, 1.0), (1.5, 2.0), (2.0, 4.0), (5.0, 6.0)]
    assert end_to_end.spent(steps) == 5
    assert end_to_end.waited(steps) == 0.5 + 0 + 1


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Report of two parts of benchmarks.gpu on the CPU; one cannot write its data set."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "file").touch()
    out = folder / "gpu.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--parts", "digits",
         "checkpointing"],
        cwd=ROOT,
        env=os.environ | {"TFDS_DATA_DIR": str(folder / "file"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_a_part_that_fails_is_recorded_and_the_others_are_measured(report: dict[str, Any]):
    digits, checkpointing = report["parts"]["digits"], report["parts"]["checkpointing"]
    assert "--data-dir" in digits["error"]
    assert "error" not in checkpointing
    assert checkpointing["num_steps"] == 20
    assert 0 < checkpointing["longest_save_seconds"] < checkpointing["seconds"]


def test_a_part_that_exceeds_its_time_limit_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(gpu.PARTS, "step", (0.1, gpu_parts.steps))
    result = gpu.run_part("step", True, tmp_path)
    assert result["error"] == "timeout after 1.0 s"
    assert "settings" not in result


def test_a_save_takes_the_time_that_its_steps_do_not_explain():
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
    assert gpu_parts.save_seconds(records, 10) == [0.5, 0.0, 0.0]
    assert gpu_parts.save_seconds(records, 20) == [0.0]


def test_the_tables_have_the_parts_that_were_measured(report: dict[str, Any]):
    made = tables.gpu(report)
    assert list(made) == ["gpu-runs"]
    assert "| `python -m train digits` | 20 |" in made["gpu-runs"]


def test_the_step_table_has_utilization_and_ratios():
    subjects = {"optax-warmup": {"images_per_second": 5000.0}, "flax": {"images_per_second": 4e3}}
    alone = {"torch, compiled": {"images_per_second": 2500.0}}
    bounds = {
        "batch_size": 256,
        "images_per_second": 5100.0,
        "model_flops_per_image": 24.6e9,
        "xla_flops_per_image": None,
        "peak_flops": 989e12,
        "mfu": 0.127,
        "bytes_per_image": 0.4e9,
        "copy_bytes_per_second": 3e12,
        "bandwidth_bound_images_per_second": 7500.0,
    }
    settings = [{"batch_size": 256, "subjects": some} for some in (subjects, alone)]
    made = tables.gpu({"parts": {"step": {"settings": settings}, "bounds": bounds}})
    assert "| 256: optax-warmup | 5,000 | 12.4 % | 1.00 |" in made["gpu-step"]
    assert "| 256: flax | 4,000 | 9.9 % | 0.80 |" in made["gpu-step"]
    assert "| 256: torch, compiled | 2,500 | 6.2 % | 0.50 |" in made["gpu-step"]
    assert "| images/s at that bandwidth | 7,500 |" in made["gpu-bounds"]
    assert "| share of the peak (MFU), % | 12.7 |" in made["gpu-bounds"]
    assert "GFLOP per image, counted by XLA" not in made["gpu-bounds"]  # unknown


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3)])
def test_a_small_network_is_that_of_the_setting(size: int, channels: int):
    setting = Setting(network="resnet8", image_size=size, batch_size=32, dtype="float32")
    _, state, minibatch = trainer(setting)
    assert minibatch.images.shape == (1, 32, size, size, channels)
    assert state.network.params["stem"]["conv"]["kernel"].shape == (3, 3, channels, 16)
    assert state.network.params["head"]["kernel"].shape == (64, 10)
    assert int(minibatch.labels.max()) == 9


def test_results_of_the_other_network_are_kept_for_the_same_machine(tmp_path: Path):
    path = tmp_path / "step.json"
    same = {"hardware": {"cpu": "AMD EPYC"}, "versions": {"jax": "1"}, "python": "3.12"}
    assert step.earlier_settings(path, same, ["resnet8"]) == []
    large, small = {"image_size": 224}, {"image_size": 8, "network": "resnet8"}
    path.write_text(json.dumps(same | {"settings": [large, small]}))
    assert step.earlier_settings(path, same, ["resnet8"]) == [large]
    assert step.earlier_settings(path, same, ["resnet50"]) == [small]
    assert step.earlier_settings(path, same | {"versions": {"jax": "2"}}, ["resnet8"]) == []


def test_small_networks_are_compared_with_the_fastest_form_of_torch():
    forms = {"torch": 0.9, "torch, channels_last": 1.4, "torch, compiled": 0.8, "torch, both": 1.1}
    subjects = {
        name: {
            "images_per_second": 1000 / ratio,
            "optax_warmup_ratio": ratio,
            "optax_warmup_ratio_cpu": 2 * ratio,
        }
        for name, ratio in {"optax-warmup": 1.0, **forms}.items()
    }
    sizes = {"image_size": 8, "batch_size": 128, "load_average_before": 0.1}
    line = "| 8×8, 128 | 1,000 | 1,111 | 714 | 1,250 | 909 | **0.80** | **1.60** | 0.1 |"
    assert line in tables.small_networks([sizes | {"subjects": subjects}])
    without = {"torch": subjects["torch"]}
    assert "| 1,111 |  |  |  |" in tables.small_networks([sizes | {"subjects": without}])


def test_nested_parts_are_not_counted_twice(monkeypatch: pytest.MonkeyPatch):
    clock = 0.0
    monkeypatch.setattr(main_job.time, "perf_counter", lambda: clock)

    def spend(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def minibatches() -> Any:
        for number in range(2):
            spend(1)
            yield number

    loop = SimpleNamespace(on_devices=minibatches, predict=spend)
    parts = main_job.Parts()
    parts.wrap_loop(loop, "on_devices")
    parts.wrap(loop, "predict", "evaluation")
    spend(100)
    for _ in loop.on_devices():
        spend(10)
        loop.predict(5)
        parts.add("compilation", 2)
    spend(1000)
    parts.stop()
    assert parts.seconds == {
        main_job.OTHER: 1100,
        "data": 2,
        "steps": 16,
        "evaluation": 10,
        "compilation": 4,
    }


def test_the_parts_of_a_run_are_measured_in_the_real_process(tmp_path: Path):
    variables = main_job.variables_of(tmp_path) | {"PYTHONPATH": str(ROOT)}
    parts = main_job.run_parts(tmp_path / "run", variables, ["--num-steps", "22"])
    assert list(parts) == main_job.PARTS
    assert all(seconds > 0 for seconds in parts.values()), parts
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_steps"] == 22


def test_the_table_of_the_main_job_has_the_ratio_to_another_commit():
    run = {"seconds": 20.0, "parts": {"imports": 1.5}, "seconds_against": 50.0, "ratio": 0.404}
    report = {"cold": run, "warm": run | {"ratio": 0.5}}
    assert "÷" not in tables.main_job(report)
    made = tables.main_job(report | {"against": "bdc4af7"})
    assert "| ÷ bdc4af7 | 0.40 | 0.50 |" in made
    assert "| imports | 1.5 | 1.5 |" in made
