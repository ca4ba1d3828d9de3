"""Predictions of a training step: what the compiler estimates, formulas for the rest, and a table.

The formulas are those of docs/pods.md. Seconds, bytes, bytes per second.
"""

import dataclasses
import math

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from train.config import Config, JsonObject
from train.planning.cost_model import Schedule, exposed_seconds, torus_all_reduce_seconds
from train.run.terminal import wrapped

BASE = 8  # devices to which efficiencies refer, as in the paper
LABEL = 20  # characters of a row's label in the table
PAPER_EFFICIENCY = 0.9  # of 256 GPUs relative to 8 (paper, section 5.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction for one number of devices. None means unknown."""

    name: str
    num_devices: int
    num_workers: int
    """k."""
    batch_size_per_worker: int
    """n."""
    compute_seconds: float
    communication_seconds: float
    """Time of all all-reduces."""
    exposed_seconds: float
    """Part of the communication that the step blocks on."""
    reduced_bytes: int
    """Bytes that each device all-reduces in a step."""
    num_all_reduces: int | None = None
    compute_cycles: int | None = None
    """Compute cycles as the compiler estimates them."""
    communication_cycles: int | None = None
    """All-reduce cycles as the compiler estimates them."""
    overlapped_cycles: int | None = None
    """Compute cycles that the schedule overlaps with all-reduces."""
    memory_bytes: int | None = None
    """Memory of a device: parameters, optimizer state, minibatch, activations and the program."""
    fits: bool | None = None

    @property
    def step_seconds(self) -> float:
        """Compute plus the communication that is not hidden."""
        return self.compute_seconds + self.exposed_seconds

    @property
    def images_per_second(self) -> float:
        """Throughput of all devices."""
        return self.num_workers * self.batch_size_per_worker / self.step_seconds

    def efficiency(self, base: "Prediction") -> float:
        """Throughput per device relative to that of `base`."""
        return (self.images_per_second / self.num_devices) / (
            base.images_per_second / base.num_devices
        )


def predict_slice(
    name: str,
    schedule: Schedule,
    memory_bytes: int,
    assumptions: dict[str, float],
    *,
    workers_per_device: int,
    batch_size_per_worker: int,
    overlap: float | None,
) -> Prediction:
    """Combine the compiler's estimates for a slice with the formulas for communication.

    Args:
        name: name of the slice, such as v5e:16x16.
        schedule: schedule of the compiled step.
        memory_bytes: memory of a chip that the step needs.
        assumptions: clock_hz, hbm_bytes, link_bandwidth, num_links and latency.
        workers_per_device: workers on each chip.
        batch_size_per_worker: n.
        overlap: hidden fraction of the communication. Default: what the schedule overlaps.
    """
    shape = tuple(int(size) for size in name.partition(":")[2].partition("_")[0].split("x"))
    clock = assumptions["clock_hz"]
    seconds = [
        torus_all_reduce_seconds(
            reduction.num_bytes,
            shape,
            assumptions["num_links"] * assumptions["link_bandwidth"],
            assumptions["latency"],
        )
        for reduction in schedule.all_reduces
    ]
    hidden = [reduction.overlapped_cycles for reduction in schedule.all_reduces]
    cycles = [
        reduction.estimated_cycles
        for reduction in schedule.all_reduces
        if reduction.estimated_cycles is not None
    ]
    return Prediction(
        name=name,
        num_devices=math.prod(shape),
        num_workers=math.prod(shape) * workers_per_device,
        batch_size_per_worker=batch_size_per_worker,
        compute_seconds=schedule.compute_cycles / clock,
        communication_seconds=sum(seconds),
        exposed_seconds=exposed_seconds(seconds, [c / clock for c in hidden], overlap),
        reduced_bytes=schedule.num_bytes,
        num_all_reduces=len(schedule.all_reduces),
        compute_cycles=schedule.compute_cycles,
        communication_cycles=sum(cycles) if cycles else None,
        overlapped_cycles=sum(hidden),
        memory_bytes=memory_bytes,
        fits=memory_bytes <= assumptions["hbm_bytes"],
    )


def base_of(predictions: list[Prediction]) -> Prediction:
    """The prediction that the others are compared with."""
    return next(p for p in predictions if p.num_devices == BASE)


def to_json(
    config: Config, assumptions: dict[str, float | None], predictions: list[Prediction]
) -> JsonObject:
    """Configuration, assumptions and predictions, for pod.json."""
    base = base_of(predictions)
    return {
        "recipe": config.experiment.recipe,
        "model": config.experiment.model,
        "image_size": config.experiment.image_size,
        "dtype": config.experiment.dtype,
        "accumulation_steps": config.machine.accumulation_steps,
        "assumptions": assumptions,
        "predictions": [
            dataclasses.asdict(p)
            | {
                "step_seconds": p.step_seconds,
                "images_per_second": p.images_per_second,
                "efficiency": p.efficiency(base),
            }
            for p in predictions
        ],
    }


def table(
    assumptions: dict[str, float], predictions: list[Prediction], width: int | None = None
) -> str:
    """The predictions as a table with one column each; 1 GB is 1e9 bytes.

    Args:
        assumptions: what they assume, by name.
        predictions: the predictions, one of them for `BASE` devices.
        width: columns of the terminal. Predictions that do not fit go below the others.
    """
    base = base_of(predictions)

    def million(cycles: int | None) -> str:
        return "unknown" if cycles is None else f"{cycles / 1e6:.2f} M"

    def memory(p: Prediction) -> str:
        assert p.memory_bytes is not None
        return f"{p.memory_bytes / 1e9:.2f} of {assumptions['hbm_bytes'] / 1e9:.1f} GB"

    rows = [
        ("devices", [str(p.num_devices) for p in predictions]),
        ("k workers", [str(p.num_workers) for p in predictions]),
        ("n images each", [str(p.batch_size_per_worker) for p in predictions]),
    ]
    if "hbm_bytes" in assumptions:
        rows += [
            ("memory of a chip", [memory(p) for p in predictions]),
            ("fits", ["yes" if p.fits else "no" for p in predictions]),
            ("all-reduces", [str(p.num_all_reduces) for p in predictions]),
            ("compute, cycles", [million(p.compute_cycles) for p in predictions]),
            ("all-reduces, cycles", [million(p.communication_cycles) for p in predictions]),
            ("overlapping cycles", [million(p.overlapped_cycles) for p in predictions]),
        ]
    rows += [
        ("reduced", [f"{p.reduced_bytes / 1e6:.1f} MB" for p in predictions]),
        ("compute", [f"{1e3 * p.compute_seconds:.2f} ms" for p in predictions]),
        ("communication", [f"{1e3 * p.communication_seconds:.2f} ms" for p in predictions]),
        ("  not hidden", [f"{1e3 * p.exposed_seconds:.2f} ms" for p in predictions]),
        ("step", [f"{1e3 * p.step_seconds:.2f} ms" for p in predictions]),
        ("images a second", [f"{p.images_per_second:,.0f}" for p in predictions]),
        (f"efficiency from {BASE}", [f"{100 * p.efficiency(base):.1f} %" for p in predictions]),
    ]
    lines = [("", [p.name for p in predictions]), *rows]
    column = max(len(cell) for _, cells in lines for cell in cells) + 2
    at_once = len(predictions)
    if width is not None:
        at_once = max(1, (width - LABEL) // column)
    blocks = [
        [
            f"{name:<{LABEL}}" + "".join(f"{cell:>{column}}" for cell in cells[i : i + at_once])
            for name, cells in lines
        ]
        for i in range(0, len(predictions), at_once)
    ]
    assumed = ", ".join(f"{name} {value:g}" for name, value in assumptions.items())
    parts = ["\n".join(block) for block in blocks]
    return "\n\n".join(parts) + "\n" + wrapped(f"assumed: {assumed}", width)


def draw(predictions: list[Prediction], *, kind: str, title: str) -> Figure:
    """Draw the scaling efficiency over devices next to the paper's.

    Args:
        predictions: the predictions, one of them for `BASE` devices.
        kind: name of the devices, for the legend.
        title: title of the figure.
    """
    base, last = base_of(predictions), max(256, *(p.num_devices for p in predictions))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([BASE, 256], [100, 100 * PAPER_EFFICIENCY], "o--", color="tab:gray",
              label="the paper's GPUs, about 90 %")  # fmt: skip
    shown = [p for p in predictions if p.num_devices >= BASE]
    efficiencies = [100 * p.efficiency(base) for p in shown]
    axes.plot([p.num_devices for p in shown], efficiencies, "o-",
              color="tab:blue", label=f"{kind}, predicted")  # fmt: skip
    ticks = [BASE * 2**power for power in range(int(math.log2(last / BASE)) + 1)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(
        xlabel="devices",
        ylabel=f"efficiency against {BASE} devices (%)",
        ylim=(min(80, 0.95 * min(efficiencies)), None),
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure
