"""Command-line preview of recipes: tables, charts, PNG and CSV files."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import difflib
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from optax_warmup._recipe import LargeMinibatchRecipe

PAPER: dict[str, Any] = {"num_examples": 1281167, "num_workers": 256}
MARKS = "*o+x#@%&"
LEFT_OF_CHART = 11  # columns for the labels of its vertical axis
FIELDS = [field.name for field in dataclasses.fields(LargeMinibatchRecipe)]

# Flags of other trainers, and what they are called here.
FLAGS_ELSEWHERE = {
    "base-learning-rate": ("lr", "learning-rate"),
    "num-epochs": ("epochs", "max-epochs", "num-train-epochs"),
    "batch-size-per-worker": ("batch-size", "per-device-train-batch-size"),
    "num-workers": ("workers",),
    "milestones": ("lr-steps",),
    "decay-factor": ("gamma", "lr-gamma"),
    "warmup-epochs": ("warmup-steps",),
}

EXAMPLES = """examples:
  python -m optax_warmup                                 the paper's recipe at a minibatch of 8192
  python -m optax_warmup --num-examples 60000 --num-workers 32 --num-epochs 30 --milestones 10,20
  python -m optax_warmup --vs warmup=none --vs warmup=constant --png warmups.png
  python -m optax_warmup mine.json theirs.json --csv rates.csv
"""

# Epochs of one recipe and the learning rate at each.
Curve = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 2 after a user error with one line on stderr."""
    # A preview must not take accelerator memory from a training run.
    jax.config.update("jax_platforms", "cpu")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        return _complain(f"unrecognized arguments: {' '.join(unknown)}{_suggestion(unknown[0])}")
    try:
        recipes = _recipes(options)
        if options.json:
            print("\n".join(recipe.to_json() for recipe in recipes.values()))
            return 0
        curves = {name: _curve(recipe) for name, recipe in recipes.items()}
        if options.csv:
            write_csv(recipes, options.csv)
        if options.png:
            write_png(curves, options.png, log=options.log)
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for name, recipe in recipes.items():
            print(f"== {name}\n{recipe.describe(width=columns)}\n")
        width = options.width or max(10, min(72, (columns or 80) - LEFT_OF_CHART))
        print(chart(curves, width, options.height, log=options.log))
        for file in filter(None, (options.csv, options.png)):
            print(f"\nwrote {file}")
        sys.stdout.flush()  # raises BrokenPipeError here rather than at exit
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        flags = {options.csv: "--csv ", options.png: "--png "}
        return _complain(f"{flags.get(error.filename, '')}{error.filename}: {error.strerror}")
    except (ValueError, ImportError) as error:
        return _complain(str(error))
    return 0


def _complain(message: str) -> int:
    print(f"optax_warmup: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _suggestion(word: str) -> str:
    """Advice about a flag that does not exist."""
    name = word.partition("=")[0].lstrip("-").replace("_", "-").lower()
    names = [field.replace("_", "-") for field in FIELDS]
    close = [ours for ours, theirs in FLAGS_ELSEWHERE.items() if name in theirs]
    close += difflib.get_close_matches(name, names, n=1)
    return f"; did you mean --{close[0]}?" if close else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"optax_warmup: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m optax_warmup",
        description="Show the learning rates of recipes: a table for each, one chart for all.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", nargs="*", metavar="RECIPE.json", help="written by LargeMinibatchRecipe.to_json"
    )
    group = parser.add_argument_group("fields of the recipe, which replace those in the files")
    for name in FIELDS:
        default = next(
            f.default for f in dataclasses.fields(LargeMinibatchRecipe) if f.name == name
        )
        shown: Any = PAPER.get(name, default)
        text = ",".join(map(str, shown)) if name == "milestones" else shown
        group.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="30,60,..." if name == "milestones" else "VALUE",
            help=f"default {text}",
        )
    parser.add_argument(
        "--vs",
        action="append",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="another recipe: the first one with these fields replaced; can be repeated",
    )
    parser.add_argument("--png", metavar="FILE", help="draw the chart with matplotlib")
    parser.add_argument("--csv", metavar="FILE", help="write the learning rate of every step")
    parser.add_argument("--json", action="store_true", help="print only the recipes, as JSON")
    parser.add_argument("--log", action="store_true", help="use a logarithmic axis")
    parser.add_argument(
        "--width", type=int, help="columns of the chart (72, or fewer in a narrow terminal)"
    )
    parser.add_argument("--height", type=int, default=16, help="rows of the chart (16)")
    return parser


def _recipes(options: argparse.Namespace) -> dict[str, LargeMinibatchRecipe]:
    """The recipes to show, by their names in the output."""
    width = 72 if options.width is None else options.width
    if not (10 <= width <= 500 and 4 <= options.height <= 200):
        raise ValueError(
            "--width must be from 10 to 500 and --height from 4 to 200, "
            f"got {width} and {options.height}"
        )
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    changes = {name: _value(name, text) for name, text in given.items()}
    if options.files:
        recipes = {file: _changed(_read(file), changes) for file in dict.fromkeys(options.files)}
    else:
        recipes = {"recipe": _changed(LargeMinibatchRecipe(**PAPER), changes)}
    first = next(iter(recipes.values()))
    for words in options.vs:
        changed = dict(_assignment(word) for word in words)
        try:
            recipes[" ".join(words)] = dataclasses.replace(first, **changed)
        except ValueError as error:
            raise ValueError(f"--vs {' '.join(words)}: {error}") from None
    if len(recipes) > len(MARKS):
        raise ValueError(f"at most {len(MARKS)} recipes fit in one chart, got {len(recipes)}")
    return recipes


def _changed(recipe: LargeMinibatchRecipe, changes: dict[str, Any]) -> LargeMinibatchRecipe:
    """A recipe with the values of flags; errors name the flags instead of the arguments."""
    try:
        return dataclasses.replace(recipe, **changes)
    except ValueError as error:
        names = "|".join(name for name in FIELDS if "_" in name)  # others are also words
        pattern = rf"^({'|'.join(FIELDS)})\b|\b({names})\b"
        message = re.sub(pattern, lambda m: f"--{m[0].replace('_', '-')}", str(error))
        raise ValueError(message) from None


def _read(file: str) -> LargeMinibatchRecipe:
    try:
        return LargeMinibatchRecipe.from_json(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _assignment(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    if not equals or name not in FIELDS:
        raise ValueError(
            f"--vs must be FIELD=VALUE with FIELD one of {', '.join(FIELDS)}, got {word!r}"
        )
    return name, _value(name, text)


def _value(name: str, text: str) -> Any:
    """The value of a command-line word. Invalid values are left to the checks of the recipe."""
    if name == "milestones":
        return tuple(_number(word) for word in text.split(",") if word)
    return text if name in ("warmup", "scaling") else _number(text)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _rates(recipe: LargeMinibatchRecipe, steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.asarray(recipe.schedule()(steps.astype(np.int32))), steps.shape)


def _curve(recipe: LargeMinibatchRecipe) -> Curve:
    last = recipe.num_steps - 1
    corners = [recipe.warmup_steps, *recipe.milestone_steps]
    near = [step + d for step in corners for d in (-1, 0) if 0 <= step + d <= last]
    # Every step of a short run; more steps of a long one than a picture resolves, and all corners.
    steps = np.unique(np.concatenate([np.linspace(0, last, 20_001).round(), near]).astype(np.int64))
    return steps / recipe.steps_per_epoch, _rates(recipe, steps)


def chart(curves: Mapping[str, Curve], width: int, height: int, *, log: bool) -> str:
    """Chart of learning rates over epochs, drawn with characters."""
    longest = max(epochs[-1] for epochs, _ in curves.values())
    high = max(float(rates.max()) for _, rates in curves.values())
    low = min(float(rates.min()) for _, rates in curves.values()) if log else 0.0
    bottom, top = (math.log(low), math.log(high)) if log else (low, high)
    cells: dict[tuple[int, int], str] = {}
    for (epochs, rates), mark in zip(curves.values(), MARKS, strict=False):
        for column in range(width):
            epoch = longest * column / (width - 1)
            if epoch <= epochs[-1]:
                rate = float(rates[np.searchsorted(epochs, epoch, side="right") - 1])
                share = ((math.log(rate) if log else rate) - bottom) / ((top - bottom) or 1.0)
                row = height - 1 - round(share * (height - 1))
                cells[row, column] = cells.get((row, column), "") + mark
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    lines: list[str] = []
    for row in range(height):
        # Curves that coincide alternate from column to column.
        marks = [cells.get((row, column), " ") for column in range(width)]
        text = "".join(mark[column % len(mark)] for column, mark in enumerate(marks))
        lines += [f"{labels.get(row, ''):>9} |{text.rstrip()}"]
    end = f"{longest:.4g} epochs"
    lines += [f"{'':>9} +{'-' * width}", f"{'':>9}  0{end:>{width - 1}}"]
    if len(curves) > 1:
        lines += [f"{'':>9}  {mark} {name}" for name, mark in zip(curves, MARKS, strict=False)]
    return "\n".join(lines)


def write_csv(recipes: Mapping[str, LargeMinibatchRecipe], file: str) -> None:
    """Write one row per step and recipe; nine digits identify every float32."""
    with Path(file).open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["recipe", "step", "epoch", "learning_rate"])
        for name, recipe in recipes.items():
            for start in range(0, recipe.num_steps, 100_000):
                steps = np.arange(start, min(start + 100_000, recipe.num_steps))
                rows.writerows(
                    (name, step, f"{step / recipe.steps_per_epoch:.6g}", f"{rate:.9g}")
                    for step, rate in zip(steps.tolist(), _rates(recipe, steps), strict=True)
                )


def write_png(curves: Mapping[str, Curve], file: str, *, log: bool) -> None:
    """Draw the learning rates over epochs with matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "--png needs matplotlib, which the extra `optax-warmup[plot]` installs"
        ) from None
    # Pyplot would look for a window system.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, (epochs, rates)) in enumerate(curves.items()):
        # Lower curves are wider, so that curves that coincide are all visible.
        width = 1.5 + 1.6 * (len(curves) - 1 - i)
        axes.plot(epochs, rates, label=name, linewidth=width, drawstyle="steps-post")
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="log" if log else "linear")
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False)
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:  # an ending that matplotlib does not know
        raise ValueError(f"--png {file}: {error}") from None
