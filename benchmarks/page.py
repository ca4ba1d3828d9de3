"""Make benchmarks/README.md of the readings that are committed beside it.

    python benchmarks/page.py

A new benchmark writes NAME.json and adds its section here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    titles = list(header)
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def attempts(tried: dict[str, Any]) -> str:
    """What was tried, with its readings before and after, and whether it stayed."""
    return table(
        ["tried", "before", "after", "kept"],
        (
            [
                row["change"] + (f": {row['why']}" if row["why"] else ""),
                row["before"],
                row["after"],
                "yes" if row["kept"] else "no",
            ]
            for row in tried["rows"]
        ),
    )


def schedule(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """What a schedule costs."""
    instructions = table(
        ["instructions after compilation", "optax_warmup", "optax"],
        ([name, *counts.values()] for name, counts in readings["instructions"].items()),
    )
    step = readings["step"]
    ratios = table(
        ["time of a training step over that at a constant rate", "median", "middle half"],
        (
            [name, f"{r['ratio']:.3f}", f"{r['quarter']:.3f} to {r['three_quarters']:.3f}"]
            for name, r in step.items()
            if name != "constant"
        ),
    )
    return f"""## What a schedule costs

`python benchmarks/schedule.py`, jax {readings["jax"]}, {readings["device"]}. "constant again" is
the same program twice: what it differs from 1 by is noise.

{instructions}

{ratios}"""


def step(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """A training step of ResNet-50."""
    parts = []
    for setting in readings["settings"]:
        size = setting["image_size"]
        title = f"{setting['dtype']}, {size}×{size}, minibatch {setting['batch_size']}"
        title += f", load before {setting['load_average_before']:.1f}"
        header = [
            title,
            "images a second",
            "a CPU second",
            "÷ optax-warmup",
            "the same by CPU time",
        ]
        parts.append(
            table(
                header,
                (
                    [
                        name,
                        f"{r['images_per_second']:.1f}",
                        f"{r['images_per_cpu_second']:.1f}",
                        f"{1 / r['optax_warmup_ratio']:.2f}",
                        f"{1 / r['optax_warmup_ratio_cpu']:.2f}",
                    ]
                    for name, r in setting["subjects"].items()
                ),
            )
        )
        parts += [f"{name} is missing: {why}" for name, why in setting["missing"].items()]
    packages = ", ".join(f"{name} {of}" for name, of in readings["versions"].items() if of)
    machine = readings["hardware"]
    tables = "\n\n".join(parts)
    return f"""## A training step of ResNet-50

`python benchmarks/step.py` says in its first lines what is compared and how. {machine["device"]},
{machine["cores"]} cores of {machine["cpu"]}; medians of {readings["rounds"]} rounds that take
turns, and of the ratios within each. {packages}. Where the load before is not near 0, clock and CPU
time disagree, and nothing is to be concluded from a rival's ratio.

{tables}

In {tried["unit"]}:

{attempts(tried)}"""


def input_pipeline(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """From files to devices."""
    parts = []
    for cores, title in ((1, "one core"), (2, "two cores")):
        if subjects := readings.get(f"cores_{cores}"):
            rows = (
                [
                    name,
                    f"{r['images_per_second_per_core']:,.0f}",
                    f"{r['images_per_cpu_second']:,.0f}",
                    f"{r['over_simplejpeg']:.2f}",
                    f"{r['over_simplejpeg_cpu']:.2f}",
                ]
                for name, r in subjects.items()
            )
            header = [f"{title}: images", "a second and core", "a CPU second"]
            header += ["÷ simplejpeg", "the same by CPU time"]
            parts.append(table(header, rows))
            ours = subjects["optax-warmup"]
            if "over_tf_data" in ours:
                parts.append(
                    f"On {title} it delivers {ours['over_tf_data']:.2f} times what tf.data does "
                    f"({ours['over_tf_data_cpu']:.2f} by CPU time)."
                )
    parts += [f"{name} was left out: {reason}" for name, reason in readings["missing"].items()]
    packages = ", ".join(
        f"{name} {version}" for name, version in readings["packages"].items() if version
    )
    tables = "\n\n".join(parts)
    return f"""## From files to devices

`python benchmarks/input_pipeline.py` says in its first lines what is compared and how. JPEGs of
500×375 pixels and {readings["image_kilobytes"]:.0f} kB; medians of {readings["rounds"]} rounds that
take turns, and of the ratios within each. {packages}.

{tables}

`simplejpeg` and `cv2` decode and do nothing else. tf.data decodes no more than the crop, which no
well-kept library offers in Python, and which would leave damage below the crop unseen.

In {tried["unit"]}:

{attempts(tried)}"""


def end_to_end(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """From JPEGs to updated parameters."""
    machine = readings["hardware"]
    shared = (
        "\n\nThe cores that decode are those that compute: what decoding takes from the step shows "
        "in the\nrates, and is no waiting."
        if machine["platform"] == "cpu"
        else ""
    )
    return f"""## From JPEGs to updated parameters

`python benchmarks/end_to_end.py` says in its first lines what is measured and how.
{machine["device"]}, {machine["cores"]} cores of {machine["cpu"]}; medians of
{readings["rounds"]} rounds.

{end_to_end_table(readings["settings"])}{shared}"""


def end_to_end_table(settings: list[dict[str, Any]]) -> str:
    """Rates of the parts and of the whole."""
    header = ["images a second", "input pipeline", "step", "both", "bound by", "device waits"]
    header += ["by the host alone", "load before"]
    return table(
        header,
        (
            [
                f"{r['model']}, {r['dtype']}, {r['image_size']}×{r['image_size']}, minibatch "
                f"{r['batch_size']}",
                f"{r['pipeline_images_per_second']:,.1f}",
                f"{r['step_images_per_second']:,.1f}",
                f"{r['images_per_second']:,.1f}",
                r["bound_by"],
                f"{r['waited_percent']:.2f} %",
                f"{r['waited_percent_step_alone']:.2f} %",
                f"{r['load_average_before']:.1f}",
            ]
            for r in settings
        ),
    )


def gpu(readings: dict[str, Any] | None, tried: dict[str, Any]) -> str:
    """One GPU; there may be no readings yet."""
    title = "## One GPU\n\n`python benchmarks/gpu.py` says in its first lines what is measured."
    if readings is None or readings["hardware"]["platform"] == "cpu":
        title += " No figure of a GPU has\nbeen measured yet."
    if readings is None:
        return title
    machine = readings["hardware"]
    packages = ", ".join(f"{name} {of}" for name, of in readings["versions"].items() if of)
    parts = [
        title,
        f"{machine['device']}, {machine['cores']} cores of {machine['cpu']}; {packages}.",
    ]
    measured = readings["parts"]
    bounds = measured.get("bounds", {})
    if settings := measured.get("step", {}).get("settings"):
        parts.append(gpu_steps(settings, bounds))
    if "images_per_second" in bounds:
        parts.append(gpu_bounds(bounds))
    if "shares" in (profile := measured.get("profile", {})):
        rows = ([kind, f"{100 * share:.1f} %"] for kind, share in profile["shares"].items())
        parts.append(table(["the device's time in a step", "share"], rows))
        parts += [
            gpu_prediction(profile, predicted)
            for predicted in tried.get("predicted", [])
            if predicted["device"] in machine["device"]
        ]
    if "images_per_second" in measured.get("end_to_end", {}):
        parts.append(end_to_end_table([measured["end_to_end"]]))
    if "num_steps" in (saved := measured.get("checkpointing", {})):
        parts.append(
            f"`{saved['command']}`, {saved['num_steps']:,} steps with a checkpoint every "
            f"{saved['checkpoint_every_steps']}: {saved['seconds']:.0f} s. A checkpoint holds "
            f"training up for {saved['save_seconds']:.2f} s, at most "
            f"{saved['longest_save_seconds']:.2f}."
        )
    if "num_steps" in (digits := measured.get("digits", {})):
        parts.append(
            f"`python -m train`, {digits['num_steps']} steps on the digits: "
            f"{digits['seconds']:.0f} s, error {100 * digits['top1_error']:.2f} %."
        )
    parts += [f"{name} failed: {of['error']}" for name, of in measured.items() if "error" in of]
    if "rows" in tried:
        parts += [f"In {tried['unit']}:", attempts(tried)]
    return "\n\n".join(parts)


def gpu_prediction(profile: dict[str, Any], predicted: dict[str, Any]) -> str:
    """Compare the profile with what was predicted without the GPU."""
    measured = 1000 * profile["device_seconds_per_step"]
    convolutions = measured * profile["shares"]["convolution or matrix product"]
    sums = [predicted["fusions_ms"] + predicted["convolutions_ms"], measured]
    rows = [
        ["convolutions", f"{predicted['convolutions_ms']:.1f}", f"{convolutions:.1f}"],
        ["all else", f"{predicted['fusions_ms']:.1f}", f"{measured - convolutions:.1f}"],
        ["together", *(f"{of:.1f}" for of in sums)],
        ["images a second", *(f"{1000 * profile['batch_size'] / of:,.0f}" for of in sums)],
    ]
    terabytes, kernels = predicted["bytes_per_second"] / 1e12, profile["kernels_per_step"]
    text = f"""Predicted without the GPU, for {terabytes:.2f} TB/s: XLA's estimate of its fusions,
and a roofline of cuDNN's convolutions. Measured: the {kernels:,.0f} kernels of a step, which takes
{1000 * profile["step_seconds"]:.1f} ms."""
    header = [f"ms a step, minibatch {profile['batch_size']}", "predicted", "measured"]
    return f"{text}\n\n{table(header, rows)}"


def gpu_bounds(bounds: dict[str, Any]) -> str:
    """What the device could do, beside what it does."""
    flops, num_bytes = bounds["xla_flops_per_image"], bounds["bytes_per_image"]
    bound = bounds["bandwidth_bound_images_per_second"]
    rows: list[tuple[str, str]] = [
        ("images a second", f"{bounds['images_per_second']:,.0f}"),
        ("GFLOP an image of the model", f"{bounds['model_flops_per_image'] / 1e9:.1f}"),
        ("the same of the program, by XLA's count", f"{flops / 1e9:.1f}" if flops else "unknown"),
        ("MFU", f"{100 * bounds['mfu']:.1f} %" if bounds["mfu"] else "peak unknown"),
        ("MB an image, by XLA's count", f"{num_bytes / 1e6:,.0f}" if num_bytes else "unknown"),
        ("GB a second that a copy moves", f"{bounds['copy_bytes_per_second'] / 1e9:,.0f}"),
        ("images a second at that bandwidth", f"{bound:,.0f}" if bound else "unknown"),
    ]
    note = "On GPUs XLA's counts leave out cuDNN's convolutions."
    return table([f"minibatch {bounds['batch_size']}", ""], rows) + f"\n\n{note}"


def gpu_steps(settings: list[dict[str, Any]], bounds: dict[str, Any]) -> str:
    """Every subject at every minibatch."""
    ours = {
        setting["batch_size"]: setting["subjects"]["optax-warmup"]["images_per_second"]
        for setting in settings
        if "optax-warmup" in setting["subjects"]
    }
    peak = bounds.get("peak_flops")
    rows: list[list[object]] = []
    for setting in settings:
        batch_size = setting["batch_size"]
        for name, reading in setting["subjects"].items():
            rate = reading["images_per_second"]
            row: list[object] = [f"{batch_size}: {name}", f"{rate:,.0f}"]
            row.append(
                f"{100 * rate * bounds['model_flops_per_image'] / peak:.1f} %" if peak else ""
            )
            row.append(f"{rate / ours[batch_size]:.2f}" if batch_size in ours else "")
            rows.append(row)
    header = ["minibatch", "images a second", "of the peak (MFU)", "÷ optax-warmup"]
    missing = [
        f"{name} is missing at {setting['batch_size']}: {why}"
        for setting in settings
        for name, why in setting["missing"].items()
    ]
    return "\n\n".join([table(header, rows), *missing])


def startup(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """From the command to the first step."""
    seconds, machine = readings["seconds"], readings["hardware"]
    packages = ", ".join(f"{name} {of}" for name, of in readings["versions"].items() if of)
    starts = table(
        ["seconds from the command until", "the plan is printed", "the first step is over"],
        (
            [name, f"{seconds[f'{start}_plan']:.1f}", f"{seconds[f'{start}_first_step']:.1f}"]
            for name, start in (("nothing compiled", "cold"), ("compiled before", "warm"))
        ),
    )
    return f"""## From the command to the first step

`python benchmarks/startup.py` says in its first lines what is measured and how: the digits, on
{machine["cores"]} cores of {machine["cpu"]}; medians of {readings["rounds"]} rounds, load before
{statistics.median(readings["load_average_before"]):.1f}. {packages}.
Python and its imports alone take {seconds["imports"]:.1f} seconds; opening the data and finding
the devices take next to none, and a step milliseconds, so the rest is tracing and compiling, or
loading what was compiled.

{starts}"""


def checkpoint(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """What a save costs."""
    saving, first = readings["saving"], readings["first_minibatch"]
    rows = [
        ("a step", f"{saving['step_s']:.1f} s"),
        ("a save holds training up for", f"{saving['blocked_s']:.2f} s"),
        ("the same in steps, median", f"{saving['blocked_steps']:.3f}"),
        ("the same in steps, most", f"{saving['blocked_steps_most']:.3f}"),
        ("a step while a save is written, over one alone", saving["step_while_writing_ratio"]),
        ("until it is on the disk", f"{saving['save_until_on_disk_s']:.1f} s"),
        ("comparing its digests", f"{saving['open_and_compare_digests_s']:.2f} s"),
        ("loading the state", f"{saving['restore_s']:.2f} s"),
        ("the first minibatch from step 0", f"{first['from_step_0_s']:.3f} s"),
        ("the same from step 1,000,000", f"{first['from_step_1000000_s']:.3f} s"),
    ]
    rows = [(name, f"{of:.2f}" if isinstance(of, float) else of) for name, of in rows]
    return f"""## What a checkpoint costs

`python -m benchmarks.checkpoint`: ResNet-50 with momentum, {saving["bytes"] / 1e6:.0f} MB on disk,
minibatches of 32 images of 224 pixels. {readings["device"]}, {readings["cores"]} cores, jax
{readings["jax"]}, load {readings["load_average"]:.1f}.

{table([f"medians of {len(saving['rounds'])} rounds", ""], rows)}"""


def weak_scaling(readings: dict[str, Any] | None, tried: dict[str, Any]) -> str:
    """One process on a core, two on two."""
    title = "## One process on one core, two on two\n\n`python benchmarks/weak_scaling.py`"
    if readings is None:
        return f"{title} has not been read yet."
    size = readings["image_size"]
    rows = (
        [
            name,
            f"{statistics.median(rates):.2f}",
            f"{readings.get(f'efficiency_{name}', 1.0):.3f}",
        ]
        for name, rates in readings["images_per_second"].items()
    )
    rounds = len(readings["images_per_second"]["one"])
    return f"""{title}: ResNet-50, {size}×{size}, n = 32,
float32, processes that are pinned to a core. Medians of {rounds} rounds that take turns, load
before {readings["load_before"]:.1f}. "apart" are two runs that do not know of each other: what they
lose is the machine's.

{table(["", "images a second", "efficiency"], rows)}"""


def pod(readings: dict[str, Any], tried: dict[str, Any]) -> str:
    """What the TPU compiler expects."""
    forms, overlap = readings["forms"], readings["overlap"]
    packages = ", ".join(f"{name} {of}" for name, of in readings["versions"].items())
    form_rows = (
        [
            row["form"],
            f"{row['cycles']:.2f}",
            row["all_reduces"],
        ]
        for row in forms["rows"]
    )
    overlap_rows = (
        [row["options"], f"{row['cycles']:,}", row["all_reduces"], row["async"]]
        for row in overlap["rows"]
    )
    return f"""## The step of a TPU that is not there

`python -m train.pod imagenet --topology v5e:2x4`, {packages}; [docs/pods.md](../docs/pods.md) has
the predictions. In {forms["unit"]}:

{table(["form of the step", "cycles", "all-reduces"], form_rows)}

Whether the reduction can be hidden behind the backward pass. {overlap["unit"]}:

{table(["options of the compiler, all true", "cycles", "all-reduces", "async"], overlap_rows)}"""


SECTIONS: dict[str, Callable[[Any, dict[str, Any]], str]] = {
    "input_pipeline": input_pipeline,
    "schedule": schedule,
    "step": step,
    "end_to_end": end_to_end,
    "gpu": gpu,
    "startup": startup,
    "checkpoint": checkpoint,
    "weak_scaling": weak_scaling,
    "pod": pod,
}


def page() -> str:
    """The whole page."""
    tried = json.loads((FOLDER / "tried.json").read_text(encoding="utf-8"))
    files = {name: FOLDER / f"{name}.json" for name in SECTIONS}
    readings = {
        name: json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        for name, file in files.items()
    }
    sections = [section(readings[name], tried.get(name, {})) for name, section in SECTIONS.items()]
    head = "# Measurements\n\nMade by `python benchmarks/page.py` of the readings in this folder."
    return "\n\n".join([head, *sections]) + "\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
