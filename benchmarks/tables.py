"""Fill the tables of benchmarks/README.md from the JSON files: `python -m benchmarks.tables`.

A new benchmark writes NAME.json, adds its tables to `make_tables`, and gets a section of the page.
The file is long because it holds the tables of all benchmarks.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.convolution import convolutions
from benchmarks.markdown import fill, table

PAGE = Path(__file__).with_name("README.md")


def environments(reports: dict[str, Any]) -> str:
    """Machine, versions and number of rounds of each benchmark."""
    rows: list[list[object]] = []
    for name, report in reports.items():
        machine = report.get("hardware", {})
        cores = f"{machine['cores']} cores" if "cores" in machine else None
        parts = [machine.get("device"), machine.get("cpu"), cores]
        versions = [f"{package} {of}" for package, of in report["versions"].items() if of]
        hardware = ", ".join(filter(None, parts))
        rounds = report.get("rounds") or _rounds_of_settings(report)
        rows.append([f"`{name}`", hardware, ", ".join(versions), rounds])
    return table(["benchmark", "hardware", "versions", "rounds"], rows)


def _rounds_of_settings(report: dict[str, Any]) -> str:
    """Rounds of a report whose settings were measured separately."""
    rounds = {of["rounds"] for of in report.get("settings", []) if "rounds" in of}
    return " or ".join(map(str, sorted(rounds)))


def steps(settings: list[dict[str, Any]]) -> str:
    """Throughput of a training step in each library."""
    rows = (
        [
            f"{setting['image_size']}×{setting['image_size']}: {name}",
            f"{result['images_per_second']:.1f}",
            f"{result['images_per_cpu_second']:.1f}",
            f"{1 / result['optax_warmup_ratio']:.2f}" if "optax_warmup_ratio" in result else "",
            f"{1 / result['optax_warmup_ratio_cpu']:.2f}" if "optax_warmup_ratio" in result else "",
            f"{setting['load_average_before']:.1f}",
        ]
        for setting in settings
        for name, result in setting["subjects"].items()
    )
    header = ["", "images/s", "images per CPU second", "÷ optax-warmup", "÷ by CPU time"]
    return table([*header, "load before"], rows)


def small_data(settings: list[dict[str, Any]]) -> str:
    """Throughput of the input pipeline for small images on one core."""
    rows = (
        [
            f"{r['size']}×{r['size']}×{r['num_channels']}, {r['augmentation']}",
            *(
                f"{r[name]['images_per_second']:,.0f}"
                for name in ("array", "array, to the device", "records")
            ),
            f"{r['decode_s']:.1f} s",
            f"{1e3 * r['open_s']:.1f} ms",
        ]
        for r in settings
    )
    header = ["images/s", "array", "array, to the device", "records"]
    return table([*header, "first start decodes", "next start opens"], rows)


def small_networks(settings: list[dict[str, Any]]) -> str:
    """Throughput of a training step of resnet8, and its ratio to the fastest form in PyTorch."""
    forms = ["torch", "torch, channels_last", "torch, compiled", "torch, both"]
    rows: list[list[object]] = []
    for setting in settings:
        subjects = setting["subjects"]
        rates = [
            f"{subjects[name]['images_per_second']:,.0f}" if name in subjects else ""
            for name in ("optax-warmup", *forms)
        ]
        measured = [subjects[name] for name in forms if name in subjects]
        best = [
            f"**{min(of[key] for of in measured):.2f}**" if measured and key in measured[0] else ""
            for key in ("optax_warmup_ratio", "optax_warmup_ratio_cpu")
        ]
        size = f"{setting['image_size']}×{setting['image_size']}, {setting['batch_size']}"
        rows.append([size, *rates, *best, f"{setting['load_average_before']:.1f}"])
    header = ["images/s: pixels, minibatch", "optax-warmup", *forms]
    return table([*header, "÷ best torch", "÷ by CPU time", "load before"], rows)


def end_to_end(settings: list[dict[str, Any]]) -> str:
    """Throughput of the input pipeline, the step, and both."""
    rows = (
        [
            f"{r['model']}, {r['dtype']}, {r['image_size']}×{r['image_size']}, "
            f"minibatch {r['batch_size']}",
            f"{r['pipeline_images_per_second']:,.1f}",
            f"{r['step_images_per_second']:,.1f}",
            f"{r['images_per_second']:,.1f}",
            r["bound_by"],
            f"{r['waited_percent']:.2f} %",
            f"{r['waited_percent_step_alone']:.2f} %",
            f"{r['load_average_before']:.1f}",
        ]
        for r in settings
    )
    header = ["images/s", "input pipeline", "step", "both", "limited by", "device waits"]
    return table([*header, "device waits, step alone", "load before"], rows)


def pipelines(results: dict[str, dict[str, float]]) -> str:
    """Throughput of each input pipeline."""
    rows = (
        [
            name,
            f"{result['images_per_second_per_core']:,.0f}",
            f"{result['images_per_cpu_second']:,.0f}",
            f"{result['over_simplejpeg']:.2f}",
            f"{result['over_simplejpeg_cpu']:.2f}",
        ]
        for name, result in results.items()
    )
    header = ["", "images/s per core", "images per CPU second", "÷ simplejpeg", "÷ by CPU time"]
    return table(header, rows)


def over_tf_data(report: dict[str, Any]) -> str:
    """Throughput of this trainer's input pipeline, relative to tf.data."""
    ours = {"one core": report["cores_1"], "two cores": report["cores_2"]}
    rows = (
        [
            cores,
            f"{of['optax-warmup']['over_tf_data']:.2f}",
            f"{of['optax-warmup']['over_tf_data_cpu']:.2f}",
        ]
        for cores, of in ours.items()
    )
    return table(["optax-warmup ÷ tf.data", "by the clock", "by CPU time"], rows)


def gpu(report: dict[str, Any]) -> dict[str, str]:
    """The tables of the parts of benchmarks/gpu.py that were measured."""
    parts, tables = report["parts"], {}
    bounds = parts.get("bounds", {})
    if settings := parts.get("step", {}).get("settings"):
        tables["gpu-step"] = gpu_steps(settings, bounds)
    if "images_per_second" in bounds:
        tables["gpu-bounds"] = gpu_bounds(bounds)
    if shares := parts.get("profile", {}).get("shares"):
        rows = ([kind, f"{100 * share:.1f} %"] for kind, share in shares.items())
        tables["gpu-profile"] = table(["device time of a step", "share"], rows)
    if "prediction" in parts:
        tables["gpu-prediction"] = gpu_prediction(parts["prediction"], parts["profile"])
    if variants := parts.get("variants", {}).get("milliseconds"):
        rows = (
            [name, f"{of:.1f}", f"{of / variants['as is']:.2f}"] for name, of in variants.items()
        )
        tables["gpu-variants"] = table(["step", "ms", "÷ as is"], rows)
    if "images_per_second" in parts.get("end_to_end", {}):
        tables["gpu-end-to-end"] = end_to_end([parts["end_to_end"]])
    runs = [parts[name] for name in ("checkpointing", "digits") if name in parts]
    if runs := [run for run in runs if "num_steps" in run]:
        tables["gpu-runs"] = gpu_runs(runs)
    return tables


def gpu_steps(settings: list[dict[str, Any]], bounds: dict[str, Any]) -> str:
    """Throughput and utilization of each library at each batch size."""
    ours = {
        setting["batch_size"]: setting["subjects"]["optax-warmup"]["images_per_second"]
        for setting in settings
        if "optax-warmup" in setting["subjects"]
    }
    mfu = bounds["model_flops_per_image"] / bounds["peak_flops"] if bounds.get("peak_flops") else 0
    rows = (
        [
            f"{(size := setting['batch_size'])}: {name}",
            f"{(rate := result['images_per_second']):,.0f}",
            f"{100 * rate * mfu:.1f} %" if mfu else "",
            f"{rate / ours[size]:.2f}" if size in ours else "",
        ]
        for setting in settings
        for name, result in setting["subjects"].items()
    )
    return table(["batch size", "images/s", "share of the peak (MFU)", "÷ optax-warmup"], rows)


def gpu_bounds(bounds: dict[str, Any]) -> str:
    """Throughput of the step and the limits of the device, without what is unknown."""
    lines = [
        ("images/s", "images_per_second", 1, ",.0f"),
        ("GFLOP per image, model", "model_flops_per_image", 1e9, ".1f"),
        ("GFLOP per image, counted by XLA", "xla_flops_per_image", 1e9, ".1f"),
        ("share of the peak (MFU), %", "mfu", 0.01, ".1f"),
        ("MB per image, counted by XLA", "bytes_per_image", 1e6, ",.0f"),
        ("GB/s of a copy", "copy_bytes_per_second", 1e9, ",.0f"),
        ("images/s at that bandwidth", "bandwidth_bound_images_per_second", 1, ",.0f"),
    ]
    rows = (
        [name, format(bounds[key] / unit, spec)] for name, key, unit, spec in lines if bounds[key]
    )
    return table([f"batch size {bounds['batch_size']}", ""], rows)


def gpu_prediction(prediction: dict[str, Any], profile: dict[str, Any]) -> str:
    """Milliseconds of a step, predicted without the GPU and measured on it."""
    measured = 1000 * profile["device_seconds_per_step"]
    convolutions = measured * profile["shares"]["convolution or matrix product"]
    pairs = {
        "convolutions": (prediction["convolutions_ms"], convolutions),
        "everything else": (prediction["fusions_ms"], measured - convolutions),
        "total": (prediction["convolutions_ms"] + prediction["fusions_ms"], measured),
    }
    rows = ([name, f"{a:.1f}", f"{b:.1f}"] for name, (a, b) in pairs.items())
    return table(
        [f"ms per step, batch size {profile['batch_size']}", "predicted", "measured"], rows
    )


def gpu_runs(runs: list[dict[str, Any]]) -> str:
    """Duration of whole runs, and of their saves."""
    rows = (
        [
            f"`{run.get('command', 'python -m train')}`",
            f"{run['num_steps']:,}",
            f"{run['seconds']:.0f}",
            f"{100 * run['top1_error']:.2f}" if "top1_error" in run else "",
            f"{run['save_seconds']:.2f}" if "save_seconds" in run else "",
            f"{run['longest_save_seconds']:.2f}" if "save_seconds" in run else "",
        ]
        for run in runs
    )
    header = ["run", "steps", "seconds", "test error (%)", "seconds per save, median", "maximum"]
    return table(header, rows)


def main_job(report: dict[str, Any]) -> str:
    """Seconds of the README's command and of its parts, and the ratio to another commit."""
    runs = [report["cold"], report["warm"]]
    rows = [["**from start to end**", *(f"**{run['seconds']:.1f}**" for run in runs)]]
    if "against" in report:
        commit = report["against"]
        rows += [
            [f"the same at {commit}", *(f"{run['seconds_against']:.1f}" for run in runs)],
            [f"÷ {commit}", *(f"{run['ratio']:.2f}" for run in runs)],
        ]
    rows += [[part, *(f"{run['parts'][part]:.1f}" for run in runs)] for part in runs[0]["parts"]]
    return table(["seconds", "cold", "warm"], rows)


def checkpoint(report: dict[str, Any]) -> str:
    """Cost of saving and restoring."""
    saving, first = report["saving"], report["first_minibatch"]
    rows = [
        ("size on disk", f"{saving['bytes'] / 1e6:.0f} MB"),
        ("a step", f"{saving['step_s']:.1f} s"),
        ("a save blocks training for", f"{saving['blocked_s']:.2f} s"),
        ("the same in steps", f"{saving['blocked_steps']:.3f}"),
        ("the same in steps, maximum", f"{saving['blocked_steps_most']:.3f}"),
        ("a step during a save ÷ one alone", f"{saving['step_while_writing_ratio']:.2f}"),
        ("from a save to the file on disk", f"{saving['save_until_on_disk_s']:.1f} s"),
        ("opening and comparing digests", f"{saving['open_and_compare_digests_s']:.2f} s"),
        ("restoring the state", f"{saving['restore_s']:.2f} s"),
        ("first minibatch at step 0", f"{first['from_step_0_s']:.3f} s"),
        ("first minibatch at step 1,000,000", f"{first['from_step_1000000_s']:.3f} s"),
    ]
    return table(["", "median"], rows)


def preparation(report: dict[str, Any]) -> str:
    """Speed and memory of preparing photographs."""
    rows = [
        (
            f"{of['images']:,}",
            f"{of['seconds']['finding']:.1f} s",
            f"{of['images'] / of['seconds']['writing']:,.0f}",
            f"{of['images'] / of['seconds']['verifying']:,.0f}",
            f"{of['peak_bytes'] / 1e6:,.0f} MB",
        )
        for of in report["preparations"]
    ]
    header = ["photographs", "finding them", "written per second", "verified per second"]
    return table([*header, "peak memory"], rows)


def verification(report: dict[str, Any]) -> str:
    """Throughput of verification and of the bare decoder."""
    rows = [
        ("bare decoder", f"{report['bare_images_per_second']:,.0f}", "1.00"),
        (
            "verification",
            f"{report['verification_images_per_second']:,.0f}",
            f"{report['verification_over_bare']:.2f}",
        ),
    ]
    return table(["on all cores", "images/s", "÷ bare decoder"], rows)


def weak_scaling(report: dict[str, Any]) -> str:
    """Throughput and efficiency of two processes."""
    rows = (
        [name, f"{statistics.median(each):.2f}", f"{report.get(f'efficiency_{name}', 1.0):.3f}"]
        for name, each in report["images_per_second"].items()
    )
    return table(["", "images/s", "efficiency"], rows)


def instructions(counts: dict[str, dict[str, int]]) -> str:
    """Instructions of a compiled schedule."""
    rows = ([name, *of.values()] for name, of in counts.items())
    return table(["instructions after compilation", "optax_warmup", "optax"], rows)


def million(results: dict[str, dict[str, float]]) -> str:
    """Milliseconds for a million steps of a schedule in one call."""
    rows = (
        [name, f"{of['first_s'] * 1e3:.1f}", f"{of['then_s'] * 1e3:.2f}"]
        for name, of in results.items()
    )
    return table(["ms for a million steps in one call", "with compilation", "without"], rows)


def schedule_times(step: dict[str, dict[str, float]]) -> str:
    """Time of a training step with a schedule, relative to a constant rate."""
    rows = (
        [name, f"{of['ratio']:.3f}", f"{of['quarter']:.3f} to {of['three_quarters']:.3f}"]
        for name, of in step.items()
        if name != "constant"
    )
    return table(["time of a step ÷ one at a constant rate", "median", "middle half"], rows)


def pod_forms(rows: list[dict[str, Any]]) -> str:
    """Cycles of a TPU step, by the form of the program."""
    header = ["form of the step", "million cycles", "all-reduces"]
    return table(header, ([r["form"], f"{r['cycles']:.2f}", r["all_reduces"]] for r in rows))


def pod_overlap(rows: list[dict[str, Any]]) -> str:
    """Cycles of a TPU step, by the options of the compiler."""
    return table(
        ["compiler options", "cycles", "all-reduces", "asynchronous"],
        ([r["options"], f"{r['cycles']:,}", r["all_reduces"], r["async"]] for r in rows),
    )


def of_network(report: dict[str, Any], network: str) -> list[dict[str, Any]]:
    """The settings of one network; older reports have only ResNet-50."""
    return [of for of in report["settings"] if of.get("network", "resnet50") == network]


def make_tables() -> dict[str, str]:
    """Make all tables of the page."""
    files = sorted(PAGE.parent.glob("*.json"))
    reports = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    tables = gpu(reports["gpu"]) if "gpu" in reports else {}
    return tables | {
        "convolutions": convolutions(reports["convolution"]),
        "step": steps(of_network(reports["step"], "resnet50")),
        "small-networks": small_networks(of_network(reports["step"], "resnet8")),
        "end-to-end": end_to_end(reports["end_to_end"]["settings"]),
        "pipelines-one-core": pipelines(reports["input_pipeline"]["cores_1"]),
        "pipelines-two-cores": pipelines(reports["input_pipeline"]["cores_2"]),
        "tf-data": over_tf_data(reports["input_pipeline"]),
        "small-data": small_data(reports["small_data"]["settings"]),
        "main-job": main_job(reports["main_job"]),
        "checkpoint": checkpoint(reports["checkpoint"]),
        "preparation": preparation(reports["preparation"]),
        "verification": verification(reports["preparation"]),
        "weak-scaling": weak_scaling(reports["weak_scaling"]),
        "instructions": instructions(reports["schedule"]["instructions"]),
        "million": million(reports["schedule"]["million_steps"]),
        "schedule-times": schedule_times(reports["schedule"]["step"]),
        "pod-forms": pod_forms(reports["pod"]["forms"]),
        "pod-overlap": pod_overlap(reports["pod"]["overlap"]),
        "environments": environments(reports),
    }


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), make_tables()), encoding="utf-8")
