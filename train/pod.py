"""`python -m train.pod RECIPE --topology v5e:16x16`: predict the training step of a TPU pod.

The TPU compiler of the wheel `libtpu` compiles the step for the slice; no TPU is needed. With
`--step-seconds`, the time of a step measured on one GPU, the same is predicted for GPUs.
docs/pods.md has the formulas.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import jax

from train import command_line
from train.config import Config
from train.errors import UsageError, check_folder, check_number, flag
from train.planning.cost_model import (
    CHIPS,
    exposed_seconds,
    node_all_reduce_seconds,
    read_schedule,
)
from train.planning.memory import compile_step
from train.planning.options import StepOptions
from train.planning.prediction import BASE, Prediction, draw, predict_slice, table, to_json
from train.planning.slices import base_slice, slice_devices, stay_off_devices
from train.run.terminal import terminal_width, wrapped
from train.step.optimizer import make_optimizer
from train.step.state import abstract_state
from train.step.workers import make_workers

PROG = "python -m train.pod"
FOR_TPUS = ("clock_hz", "hbm_bytes", "link_bandwidth", "num_links")
FOR_GPUS = ("num_gpus", "gpus_per_node", "intra_node_bandwidth", "inter_node_bandwidth")
NUM_EXAMPLES = 1_281_167  # ImageNet's; the length of the schedule does not affect the step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StepOptions):
    """Predict memory, time and scaling of a training step on TPU slices, or on GPUs."""

    topology: tuple[str, ...] = dataclasses.field(default=(), metadata={"metavar": "SLICE"})
    """Slices of one kind to compile for, such as v5e:16x16, v4:4x4x4, v5p:4x4x4 or v6e:8x8. The
    slice of 8 chips is added as the base of comparison."""

    batch_size_per_worker: int = 32
    """n: images per worker."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype of the network."""

    clock_hz: float | None = None
    """Clock rate that converts a TPU compiler's cycles to seconds. Default: by TPU generation."""

    hbm_bytes: int | None = None
    """Memory of a TPU chip, in bytes. Default: by TPU generation."""

    link_bandwidth: float | None = None
    """Bandwidth of a link between two TPU chips in one direction, in bytes per second. Default: by
    TPU generation."""

    num_links: int = 2
    """Links that a TPU chip sends over at once: 2 for a ring in both directions."""

    latency: float | None = None
    """Seconds from one device to the next. Default: 1e-6 between TPUs, 5e-6 between GPUs."""

    overlap: float | None = None
    """Fraction of the communication that computation hides, from 0 to 1. Default: what the
    compiler's schedule overlaps, and 0 for GPUs."""

    step_seconds: float | None = None
    """Measured time of a step on one GPU, in seconds. Predicts GPUs instead of TPUs."""

    num_gpus: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Numbers of GPUs to predict, with --step-seconds."""

    gpus_per_node: int = 8
    """GPUs that share the faster links of a node."""

    intra_node_bandwidth: float = 450e9
    """Bandwidth from a GPU to another in its node in one direction, in bytes per second, such as
    that of an H100's NVLink."""

    inter_node_bandwidth: float = 50e9
    """Bandwidth from a GPU to one in another node, in bytes per second, such as that of one network
    card of 400 Gbit/s per GPU."""

    out: Path = Path("runs/pod")
    """Folder for pod.json and pod.png."""

    def __post_init__(self) -> None:
        """Check everything that needs no compiler."""
        super().__post_init__()
        self.config(1)  # checks --batch-size-per-worker
        check_folder("out", self.out)
        for name in (
            "clock_hz", "hbm_bytes", "link_bandwidth", "num_links", "step_seconds",
            "gpus_per_node", "intra_node_bandwidth", "inter_node_bandwidth",
        ):  # fmt: skip
            check_number(name, getattr(self, name), above=0)
        check_number("latency", self.latency, minimum=0)
        check_number("overlap", self.overlap, minimum=0, maximum=1)
        for num_gpus in self.num_gpus:
            if num_gpus < 1 or (num_gpus > self.gpus_per_node and num_gpus % self.gpus_per_node):
                raise UsageError(
                    f"--num-gpus has {num_gpus}; it must be from 1 to {self.gpus_per_node}, or a "
                    f"multiple of --gpus-per-node, {self.gpus_per_node}"
                )
        if bool(self.topology) == (self.step_seconds is not None):
            raise UsageError("pass either --topology or --step-seconds")
        self._check_kind()

    def _check_kind(self) -> None:
        """Reject flags that have no effect on TPUs, or on GPUs."""
        unused = FOR_GPUS if self.topology else FOR_TPUS
        for field in dataclasses.fields(self):
            if field.name in unused and getattr(self, field.name) != field.default:
                kind, cause = ("GPUs", "topology") if self.topology else ("TPUs", "step_seconds")
                raise UsageError(
                    f"{flag(field.name)} is for {kind} and has no effect with {flag(cause)}; "
                    "leave it out"
                )

    def config(self, num_devices: int) -> Config:
        """The run on a number of devices."""
        return self.config_for(num_devices, self.batch_size_per_worker)


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        stay_off_devices()
        data = options.data()
        if options.step_seconds is None:
            kind, assumptions, predictions = _predict_tpus(options, data.num_classes)
        else:
            kind, assumptions, predictions = _predict_gpus(
                options, data.num_classes, options.step_seconds
            )
        width = terminal_width()
        print(table(assumptions, predictions, width))
        for p in predictions:
            kn = p.num_workers * p.batch_size_per_worker
            if data.num_images is not None and kn > data.num_images:
                line = (
                    f"{p.name}: no such run is possible, since its minibatch of {kn} images is "
                    f"larger than the {data.num_images} training images of {data.name}"
                )
                print(wrapped(line, width))
        config = options.config(1)
        options.out.mkdir(parents=True, exist_ok=True)
        report = to_json(config, {**assumptions, "overlap": options.overlap}, predictions)
        (options.out / "pod.json").write_text(json.dumps(report, indent=2) + "\n")
        title = (
            f"{config.experiment.model}, n = {options.batch_size_per_worker}, "
            f"{options.workers_per_device} worker(s) a device, {config.experiment.dtype}"
        )
        draw(predictions, kind=kind, title=title).savefig(options.out / "pod.png", dpi=100)
        print(f"wrote {options.out}/pod.json and pod.png")
        return 0

    return command_line.run(PROG, command)


def _predict_tpus(
    options: Options, num_classes: int
) -> tuple[str, dict[str, float], list[Prediction]]:
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
        schedule = config.experiment.large_minibatch_recipe(NUM_EXAMPLES).schedule()
        program, memory = compile_step(config, num_classes, schedule, devices)
        prediction = predict_slice(
            name, read_schedule(program.as_text() or ""), memory.step, assumptions,
            workers_per_device=options.workers_per_device,
            batch_size_per_worker=options.batch_size_per_worker,
            overlap=options.overlap,
        )  # fmt: skip
        predictions.append(prediction)
    return kind, assumptions, predictions


def _predict_gpus(
    options: Options, num_classes: int, step_seconds: float
) -> tuple[str, dict[str, float], list[Prediction]]:
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
    optimizer = make_optimizer(lambda _: 0.1)
    state = abstract_state(config.experiment, num_classes, optimizer, workers)
    # Gradients and statistics are all-reduced in float32.
    num_bytes = sum(4 * x.size for x in jax.tree.leaves(state.network))
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
        prediction = Prediction(
            name=f"{num_gpus} GPUs",
            num_devices=num_gpus,
            num_workers=num_gpus * options.workers_per_device,
            batch_size_per_worker=options.batch_size_per_worker,
            compute_seconds=step_seconds,
            communication_seconds=seconds,
            exposed_seconds=exposed_seconds([seconds], [0.0], assumptions["overlap"]),
            reduced_bytes=num_bytes,
        )
        predictions.append(prediction)
    return "GPUs", assumptions, predictions


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
