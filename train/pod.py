"""`python -m train.pod RECIPE --topology v5e:16x16`: a pod's step, compiled before there is a pod.

The training step is compiled for the slice by the TPU compiler of the wheel `libtpu`; no TPU is
needed. With `--step-seconds`, the time of a step measured on one GPU, the same is predicted for
GPUs. docs/pods.md has the formulas.
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from jax.experimental import topologies
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from train import command_line
from train.config import Config, UsageError
from train.memory import StepOptions, abstract_state, compile_step
from train.planning.cost_model import (
    CHIPS,
    Schedule,
    exposed_seconds,
    node_all_reduce_seconds,
    read_schedule,
    torus_all_reduce_seconds,
)
from train.step.optimizer import make_optimizer
from train.step.workers import make_workers

PROG = "python -m train.pod"
BASE = 8  # devices to which efficiencies refer, as in the paper
PAPER_EFFICIENCY = 0.9  # of 256 GPUs against 8 (paper, section 5.5)
NUM_EXAMPLES = (
    1_281_167  # ImageNet's: the schedule is part of the program, its length costs nothing
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StepOptions):
    """Predict memory, time and scaling of a training step on TPU slices, or on GPUs."""

    topology: tuple[str, ...] = ()
    """Slices to compile for, such as v5e:16x16, v4:4x4x4, v5p:4x4x4 or v6e:8x8, of one kind; the
    one of 8 chips is compiled too, as what the others are compared with."""

    batch_size_per_worker: int = 32
    """n: images per worker."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the network's arithmetic."""

    clock_hz: float | None = None
    """Of the compiler's cycles; each kind of TPU has a default, as have the next two."""

    hbm_bytes: int | None = None
    """Memory of a chip."""

    link_bandwidth: float | None = None
    """Bytes a second of a link between two chips, in one direction."""

    num_links: int = 2
    """Links over which a chip sends at once: 2 for a ring in both directions."""

    latency: float | None = None
    """Seconds from one device to the next; 1e-6 between TPUs, 5e-6 between GPUs if left out."""

    overlap: float | None = None
    """Fraction of the communication that computing hides, from 0 to 1; left out, what the
    compiler's schedule says, and 0 for GPUs."""

    step_seconds: float | None = None
    """Time of a step measured on one GPU with the workers of one: predicts GPUs, not TPUs."""

    num_gpus: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Of which clusters, with --step-seconds."""

    gpus_per_node: int = 8
    """That share the faster links."""

    intra_node_bandwidth: float = 450e9
    """Bytes a second from a GPU to another in its node, in one direction; NVLink of an H100."""

    inter_node_bandwidth: float = 50e9
    """Bytes a second from a GPU to one in another node; a network card of 400 Gbit/s for each."""

    out: Path = Path("runs/pod")
    """Folder for pod.json and pod.png."""

    def __post_init__(self) -> None:
        """Check what can be checked at once."""
        super().__post_init__()
        if bool(self.topology) == (self.step_seconds is not None):
            raise UsageError("give either --topology or --step-seconds")
        for name in (
            "clock_hz", "hbm_bytes", "link_bandwidth", "num_links", "step_seconds",
            "gpus_per_node", "intra_node_bandwidth", "inter_node_bandwidth",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} is {value}; it must be more than 0")
        if self.latency is not None and not self.latency >= 0:
            raise UsageError(f"--latency is {self.latency}; it must be at least 0")
        if self.overlap is not None and not 0 <= self.overlap <= 1:
            raise UsageError(f"--overlap is {self.overlap}; it must be from 0 to 1")
        for num_gpus in self.num_gpus:
            if num_gpus < 1 or (num_gpus > self.gpus_per_node and num_gpus % self.gpus_per_node):
                raise UsageError(
                    f"--num-gpus has {num_gpus}; it must be from 1 to {self.gpus_per_node}, or a "
                    f"multiple of --gpus-per-node, {self.gpus_per_node}"
                )

    def config(self, num_devices: int) -> Config:
        """The run on so many devices."""
        return self.run_of(num_devices, self.batch_size_per_worker)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of one number of devices; None where nobody knows."""

    name: str
    num_devices: int
    num_workers: int
    """k."""
    batch_size_per_worker: int
    """n."""
    compute_seconds: float
    communication_seconds: float
    """Of all reductions."""
    exposed_seconds: float
    """For which the step waits for them."""
    reduced_bytes: int
    """In a step, of each device."""
    num_all_reduces: int | None = None
    compute_cycles: int | None = None
    communication_cycles: int | None = None
    """As the compiler estimates them."""
    overlapped_cycles: int | None = None
    """Of compute that the schedule puts beside reductions."""
    memory_bytes: int | None = None
    """Of a device: parameters, optimizer's state, minibatch, activations and the program."""
    fits: bool | None = None

    @property
    def step_seconds(self) -> float:
        """Compute, then what is not hidden of the communication."""
        return self.compute_seconds + self.exposed_seconds

    @property
    def images_per_second(self) -> float:
        """Of all devices."""
        return self.num_workers * self.batch_size_per_worker / self.step_seconds

    def efficiency(self, base: "Prediction") -> float:
        """Images a second and device, over those of `base`."""
        return (self.images_per_second / self.num_devices) / (
            base.images_per_second / base.num_devices
        )


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse(lambda: tyro.cli(Options, prog=PROG, args=args))
        _keep_off_devices()
        if options.step_seconds is None:
            assumptions, predictions = _tpus(options)
        else:
            assumptions, predictions = _gpus(options, options.step_seconds)
        print(table(assumptions, predictions))
        options.out.mkdir(parents=True, exist_ok=True)
        report = to_json(options, assumptions, predictions)
        (options.out / "pod.json").write_text(json.dumps(report, indent=2) + "\n")
        draw(predictions, options).savefig(options.out / "pod.png", dpi=100)
        print(f"wrote {options.out}/pod.json and pod.png")
        return 0

    return command_line.run(PROG, command)


def _keep_off_devices() -> None:
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU's host to ask for its slice
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # asked for all the same; any will do
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # for no process holds a TPU
    }


def _tpus(options: Options) -> tuple[dict[str, float], list[Prediction]]:
    kinds = {name.partition(":")[0] for name in options.topology}
    [kind] = kinds if len(kinds) == 1 else [""]
    if kind not in CHIPS:
        raise UsageError(
            f"--topology is {' '.join(options.topology)}; it must name slices of one of "
            f"{', '.join(CHIPS)}, such as v5e:16x16"
        )
    chip = CHIPS[kind]
    assumptions = {
        "clock_hz": options.clock_hz or chip.clock_hz,
        "hbm_bytes": options.hbm_bytes or chip.hbm_bytes,
        "link_bandwidth": options.link_bandwidth or chip.link_bandwidth,
        "num_links": options.num_links,
        "latency": 1e-6 if options.latency is None else options.latency,
    }
    slices = {name: slice_devices(name) for name in (*options.topology, base_slice(kind))}
    predictions = []
    for name, devices in sorted(slices.items(), key=lambda item: len(item[1])):
        print(f"compiling for {name}: minutes", flush=True)
        config = options.config(len(devices))
        schedule = config.large_minibatch_recipe(NUM_EXAMPLES).schedule()
        program, memory = compile_step(config, options.num_classes, schedule, devices)
        predictions.append(
            predict_slice(name, read_schedule(program.as_text()), memory.step, options, assumptions)
        )
    return assumptions, predictions


def base_slice(kind: str) -> str:
    """Name the slice of 8 chips of a kind of TPU."""
    return f"{kind}:2x2x2" if kind in ("v4", "v5p") else f"{kind}:2x4"


def slice_devices(topology: str) -> list[Any]:
    """Describe the devices of a TPU slice that need not be there, one for each chip.

    Args:
        topology: such as v5e:16x16.

    Raises:
        UsageError: if there is no such slice, or no compiler.
    """
    # A v4 chip is two devices unless its cores are told to work as one, as on Google's machines.
    together = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **together)
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"--topology {topology} is no slice: {line}") from None
    except RuntimeError:
        raise UsageError(
            "the TPU compiler is missing; install it with: pip install -c constraints.txt "
            "-e '.[train,pod]'"
        ) from None
    return list(described.devices)


def predict_slice(
    name: str,
    schedule: Schedule,
    memory_bytes: int,
    options: Options,
    assumptions: dict[str, float],
) -> Prediction:
    """Put together what the compiler says of a slice and what it does not."""
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
        num_workers=math.prod(shape) * options.workers_per_device,
        batch_size_per_worker=options.batch_size_per_worker,
        compute_seconds=schedule.compute_cycles / clock,
        communication_seconds=sum(seconds),
        exposed_seconds=exposed_seconds(seconds, [c / clock for c in hidden], options.overlap),
        reduced_bytes=schedule.num_bytes,
        num_all_reduces=len(schedule.all_reduces),
        compute_cycles=schedule.compute_cycles,
        communication_cycles=sum(cycles) if cycles else None,
        overlapped_cycles=sum(hidden),
        memory_bytes=memory_bytes,
        fits=memory_bytes <= assumptions["hbm_bytes"],
    )


def _gpus(options: Options, step_seconds: float) -> tuple[dict[str, float], list[Prediction]]:
    assumptions: dict[str, float] = {
        "step_seconds": step_seconds,
        "gpus_per_node": options.gpus_per_node,
        "intra_node_bandwidth": options.intra_node_bandwidth,
        "inter_node_bandwidth": options.inter_node_bandwidth,
        "latency": 5e-6 if options.latency is None else options.latency,
        "overlap": options.overlap or 0.0,
    }
    config = options.config(1)
    workers = make_workers(config, jax.devices()[:1])
    state = abstract_state(config, options.num_classes, make_optimizer(lambda _: 0.1), workers)
    # Gradients and statistics cross devices in float32.
    num_bytes = sum(4 * x.size for x in jax.tree.leaves((state.params, state.batch_stats)))
    predictions = []
    for num_gpus in sorted({*options.num_gpus, BASE}):
        seconds = node_all_reduce_seconds(
            num_bytes,
            num_gpus,
            gpus_per_node=options.gpus_per_node,
            intra_node_bandwidth=options.intra_node_bandwidth,
            inter_node_bandwidth=options.inter_node_bandwidth,
            latency=assumptions["latency"],
        )
        predictions.append(
            Prediction(
                name=f"{num_gpus} GPUs",
                num_devices=num_gpus,
                num_workers=num_gpus * options.workers_per_device,
                batch_size_per_worker=options.batch_size_per_worker,
                compute_seconds=step_seconds,
                communication_seconds=seconds,
                exposed_seconds=exposed_seconds([seconds], [0.0], assumptions["overlap"]),
                reduced_bytes=num_bytes,
            )
        )
    return assumptions, predictions


def base_of(predictions: list[Prediction]) -> Prediction:
    """Find what the others are compared with."""
    return next(p for p in predictions if p.num_devices == BASE)


def to_json(
    options: Options, assumptions: dict[str, float], predictions: list[Prediction]
) -> dict[str, Any]:
    """Everything that is known, as JSON has it."""
    base = base_of(predictions)
    config = options.config(1)
    return {
        "recipe": options.recipe,
        "model": config.model,
        "image_size": config.image_size,
        "dtype": config.dtype,
        "accumulation_steps": config.accumulation_steps,
        "assumptions": {**assumptions, "overlap": options.overlap},
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


def table(assumptions: dict[str, float], predictions: list[Prediction]) -> str:
    """Lay predictions out, a column for each; milliseconds, MB and GB of 1e9 bytes."""
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
    width = max(len(cell) for _, cells in lines for cell in cells) + 2
    body = [f"{name:<20}" + "".join(f"{cell:>{width}}" for cell in cells) for name, cells in lines]
    assumed = ", ".join(f"{name} {value:g}" for name, value in assumptions.items())
    return "\n".join([*body, f"assumed: {assumed}"])


def draw(predictions: list[Prediction], options: Options) -> Figure:
    """Draw the efficiency over devices beside the paper's."""
    base, last = base_of(predictions), max(256, *(p.num_devices for p in predictions))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([BASE, 256], [100, 100 * PAPER_EFFICIENCY], "o--", color="tab:gray",
              label="the paper's GPUs, about 90 %")  # fmt: skip
    shown = [p for p in predictions if p.num_devices >= BASE]
    kind = "GPUs" if options.step_seconds is not None else base.name.partition(":")[0]
    axes.plot([p.num_devices for p in shown], [100 * p.efficiency(base) for p in shown], "o-",
              color="tab:blue", label=f"{kind}, predicted")  # fmt: skip
    ticks = [BASE * 2**power for power in range(int(math.log2(last / BASE)) + 1)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    config = options.config(1)
    axes.set(
        xlabel="devices",
        ylabel=f"efficiency against {BASE} devices (%)",
        ylim=(80, None),
        title=f"{config.model}, n = {options.batch_size_per_worker}, "
        f"{options.workers_per_device} worker(s) a device, {config.dtype}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
