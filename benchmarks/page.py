"""Make benchmarks/README.md of the readings that are committed beside it.

    python benchmarks/page.py

A new benchmark writes NAME.json and adds its section here.
"""

from __future__ import annotations

import json
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
time disagree, and nothing is to be concluded from a rival's ratio. No figure of a GPU has been
measured yet.

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


SECTIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
    "input_pipeline": input_pipeline,
    "schedule": schedule,
    "step": step,
}


def page() -> str:
    """The whole page."""
    tried = json.loads((FOLDER / "tried.json").read_text(encoding="utf-8"))
    sections = [
        section(
            json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), tried.get(name, {})
        )
        for name, section in SECTIONS.items()
    ]
    head = "# Measurements\n\nMade by `python benchmarks/page.py` of the readings in this folder."
    return "\n\n".join([head, *sections]) + "\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
