"""Configuration of a run: frozen dataclasses whose fields are the command line's flags.

The paper's k and n belong to the experiment, devices belong to the machine. The same split is
visible in the types: numbers depend on an `Experiment` and on nothing else, so resuming compares
experiments only.

The file is long because it documents and checks every flag, and nothing else does.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from optax_warmup import LargeMinibatchRecipe
from train.data.augmentation import AugmentationName
from train.errors import UsageError, check_number, flag, shown

Model = Literal["resnet8", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Optimizer = Literal["sgd", "lars", "lamb"]
OnNonfinite = Literal["stop", "skip"]
JsonObject = dict[str, Any]

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that the numbers depend on."""

    recipe: str = dataclasses.field(metadata={"hidden": True})
    """Name of the recipe that the defaults come from."""

    dataset: str = dataclasses.field(metadata={"metavar": "NAME"})
    """Name of a prepared tensorflow-datasets data set, such as cifar10 or imagenet2012."""

    data: Literal["prepared", "synthetic"] = "prepared"
    """synthetic: one fixed minibatch of noise instead of the data set, to benchmark the step."""

    model: Model
    """The network. resnet8 is a small one with a stem for small images."""

    image_size: int
    """Side of the network's input, in pixels."""

    augmentation: AugmentationName
    """Training augmentation. crop-flip is the paper's; shift and shift-flip suit small images."""

    mean: tuple[float, ...]
    """Mean of each color on a scale from 0 to 1: one number for gray images, three for RGB."""

    std: tuple[float, ...]
    """Standard deviation of each color on a scale from 0 to 1, as many numbers as --mean."""

    num_workers: int
    """k: workers that share a minibatch, on any number of devices."""

    batch_size_per_worker: int = 32
    """n: images per worker. Batch normalization takes its statistics over these n images."""

    num_epochs: float = 90
    """Length of the schedule, in epochs."""

    warmup: Literal["auto", "none", "constant", "gradual"] = "auto"
    """Warmup of the learning rate. auto: gradual if the minibatch is larger than
    --base-batch-size, else none; constant with --init-from."""

    warmup_epochs: float = 5
    """Length of the warmup, in epochs."""

    milestones: tuple[float, ...] = dataclasses.field(
        default=(30, 60, 80), metadata={"may_be_empty": True}
    )
    """Epochs at which the learning rate is divided by 10. The flag alone: never."""

    base_learning_rate: float = 0.1
    """Learning rate for a minibatch of --base-batch-size."""

    base_batch_size: int = 256
    """Minibatch size that --base-learning-rate belongs to."""

    scaling: Literal["linear", "sqrt"] = "linear"
    """Scaling of the learning rate with the minibatch: in proportion to it, as in the paper, or to
    its square root, the default of lamb."""

    optimizer: Optimizer = "sgd"
    """The optimizer. sgd is the paper's. lars and lamb scale the update of each layer, for
    minibatches above 8192; they have default learning rates of their own."""

    momentum: float = MOMENTUM
    """Momentum of sgd and lars. lamb has none."""

    weight_decay: float = WEIGHT_DECAY
    """Weight decay of all parameters except γ and β of batch normalization."""

    init_from: Path | None = None
    """Trained network to start from: workdir or checkpoint of a run, folder that train.export has
    written, or .safetensors or .pth file of torchvision, timm or Hugging Face. A different number
    of classes gets a new head."""

    freeze_batch_stats: bool = False
    """Normalize with the running averages of --init-from instead of the statistics of each worker.
    The averages stay as they are."""

    freeze_stages: int = 0
    """Keep the parameters of the stem and of this many stages of --init-from. Their running
    averages still change, unless --freeze-batch-stats is passed."""

    head_learning_rate_multiplier: float = 1
    """Factor for the learning rate of the last layer, which is new if the classes differ."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the network. Parameters and statistics stay float32."""

    noise_scale: bool = False
    """Log the gradient noise scale, in images, as train/noise_scale. Beyond it larger minibatches
    save fewer and fewer steps. Needs at least two devices or accumulation steps."""

    seed: int = 0
    """Random seed for initialization, data order and augmentation."""

    def __post_init__(self) -> None:
        """Check everything that needs neither data nor devices."""
        for name in ("num_workers", "batch_size_per_worker", "base_batch_size"):
            check_number(name, getattr(self, name), minimum=1)
        check_number("image_size", self.image_size, minimum=8)
        for name in ("num_epochs", "base_learning_rate"):
            check_number(name, getattr(self, name), above=0)
        for name in ("warmup_epochs", "weight_decay"):
            check_number(name, getattr(self, name), minimum=0)
        check_number("freeze_stages", self.freeze_stages, minimum=0)
        check_number("head_learning_rate_multiplier", self.head_learning_rate_multiplier, above=0)
        check_number("momentum", self.momentum, minimum=0, below=1)
        check_number("seed", self.seed, minimum=0, maximum=LARGEST_SEED)
        _check_milestones(self.milestones)
        _check_colors(self.mean, self.std)
        if self.optimizer == "lamb" and self.momentum != MOMENTUM:
            raise UsageError(
                f"--momentum is {shown(self.momentum)}, but lamb has none to set; leave it out, or "
                "choose --optimizer sgd or lars"
            )

    @property
    def batch_size(self) -> int:
        """Images in a minibatch: kn."""
        return self.num_workers * self.batch_size_per_worker

    @property
    def num_channels(self) -> int:
        """Channels of the network's input: 3 for RGB, 1 for gray."""
        return len(self.mean)

    def large_minibatch_recipe(self, num_examples: int) -> LargeMinibatchRecipe:
        """The learning-rate recipe, in steps.

        Args:
            num_examples: images in the training set.

        Raises:
            UsageError: if the recipe is impossible, such as a warmup longer than the run.
        """
        warmup = self.warmup
        if warmup == "auto" and self.init_from and self.batch_size > self.base_batch_size:
            warmup = "constant"  # the paper's choice for pretrained layers (section 2.2)
        self._check_schedule(warmup, num_examples)
        try:
            return LargeMinibatchRecipe(
                num_examples=num_examples,
                batch_size_per_worker=self.batch_size_per_worker,
                num_workers=self.num_workers,
                num_epochs=self.num_epochs,
                warmup=warmup,
                warmup_epochs=self.warmup_epochs,
                milestones=self.milestones,
                base_learning_rate=self.base_learning_rate,
                base_batch_size=self.base_batch_size,
                scaling=self.scaling,
            )
        except ValueError as error:
            raise UsageError(_with_flags(str(error))) from error

    def _check_schedule(self, warmup: str, num_examples: int) -> None:
        """Reject a schedule that does not fit the data or itself, and name flags that would."""
        if self.batch_size > num_examples:
            raise UsageError(
                f"--num-workers is {self.num_workers}: a minibatch of {self.num_workers} × "
                f"{self.batch_size_per_worker} = {self.batch_size} images is larger than the "
                f"training set of {num_examples}; {self._sizes_for(num_examples)}"
            )
        if warmup in ("constant", "gradual") and self.batch_size < self.base_batch_size:
            raise UsageError(
                f"--warmup is {warmup}, but the learning rate would fall: the minibatch of "
                f"{self.batch_size} images is smaller than --base-batch-size, "
                f"{self.base_batch_size}; pass --warmup auto, or more --num-workers"
            )
        if warmup == "none" or (warmup == "auto" and self.batch_size <= self.base_batch_size):
            return
        if self.warmup_epochs > self.num_epochs:
            raise UsageError(
                f"--warmup-epochs is {self.warmup_epochs:g}; it must be at most --num-epochs, "
                f"{self.num_epochs:g}: pass a shorter warmup, such as --warmup-epochs "
                f"{self.num_epochs / 18:.2g}, or --warmup none"
            )
        if self.milestones and self.milestones[0] < self.warmup_epochs:
            raise UsageError(
                f"--milestones begins with {self.milestones[0]:g}; it must be at least "
                f"--warmup-epochs, {self.warmup_epochs:g}, where the warmup ends: pass later "
                f"milestones, or --warmup-epochs {self.milestones[0]:g} or less"
            )

    def _sizes_for(self, num_examples: int) -> str:
        """Flags for a minibatch that fits the training set."""
        num_workers = num_examples // self.batch_size_per_worker
        if num_workers == 0:
            return f"pass --num-workers 1 --batch-size-per-worker {num_examples} or less"
        # A power of two is a multiple of most numbers of devices.
        return f"pass --num-workers {2 ** (num_workers.bit_length() - 1)} or fewer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine, and how the run executes on it. It may change whenever the run resumes."""

    data_dir: Path | None = None
    """Folder of prepared data sets. Default: that of tensorflow-datasets."""

    num_steps: int | None = None
    """Stop after this many steps. The schedule stays that of the whole run."""

    num_devices: int | None = None
    """Simulate this many CPU devices. Default: use all devices of the machine."""

    accumulation_steps: int = 1
    """Split each minibatch into this many sequential parts to save memory. Results do not
    change."""

    allow_data_change: bool = False
    """Let a resumed run continue on data that differs from before. The classes must be the same.
    Epochs are counted with the new number of images."""

    allow_batch_size_change: bool = False
    """Let a resumed run change --num-workers or --batch-size-per-worker. The learning rate is
    rescaled, and warmed up again if it rises."""

    extend: bool = False
    """Let a run, finished or stopped, continue with another --num-epochs and other --milestones.
    Completed steps keep their learning rates, so milestones that have passed must stay."""

    on_nonfinite: OnNonfinite = "stop"
    """Reaction to a loss or gradient that is not finite: stop the run or skip the update."""

    max_nonfinite_steps: int = 10
    """Number of updates that --on-nonfinite skip may skip in the whole run."""

    num_reader_threads: int | None = None
    """Threads that read and decode images. Default: one per available core."""

    num_reader_processes: int | None = None
    """Processes among which the reader threads are divided; 0 keeps them in the training process.
    Default: one per 4 threads for photographs on 8 cores or more, else 0."""

    max_decoded_gb: float | None = None
    """Gigabytes of memory for the decoded images of a data set, which are then decoded only once
    and kept next to it. Default: half of the free memory; 0 decodes each image whenever it is
    needed. Photographs are always decoded when needed."""

    prefetch_steps: int = 1
    """Minibatches read ahead into host memory. Two more are on their way to the devices."""

    compilation_cache_dir: Path | None = None
    """Folder that keeps compiled programs for the next start. Default:
    $JAX_COMPILATION_CACHE_DIR or ~/.cache/optax-warmup; none for several processes."""

    coordinator_address: str | None = dataclasses.field(
        default=None, metadata={"metavar": "HOST:PORT"}
    )
    """Address of process 0, for several processes outside a detected cluster."""

    num_processes: int | None = None
    """Number of processes, with --coordinator-address. 1 trains in this process alone, even if a
    launcher reports several."""

    process_id: int | None = None
    """Index of this process, from 0, with --coordinator-address."""

    coordinator_timeout_seconds: int = 300
    """Seconds to wait for the other processes of the run to start."""

    def __post_init__(self) -> None:
        """Check everything that needs neither data nor devices."""
        for name in (
            "num_steps", "num_devices", "accumulation_steps", "num_reader_threads",
            "prefetch_steps", "num_processes", "coordinator_timeout_seconds",
        ):  # fmt: skip
            check_number(name, getattr(self, name), minimum=1)
        for name in ("num_reader_processes", "max_nonfinite_steps", "max_decoded_gb"):
            check_number(name, getattr(self, name), minimum=0)
        cluster = (self.coordinator_address, self.num_processes, self.process_id)
        if None in cluster and cluster not in ((None, None, None), (None, 1, None)):
            raise UsageError(
                "--coordinator-address, --num-processes and --process-id belong together: "
                "pass all three or none"
            )
        _check_address(self.coordinator_address)
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or 0):
            raise UsageError(
                f"--process-id is {self.process_id}; it must be at least 0 and less than "
                f"--num-processes, {self.num_processes}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Destination and frequency of results. They may change whenever the run resumes."""

    workdir: Path
    """Folder for checkpoints, metrics and curves. The same folder again resumes the run."""

    seeds: tuple[int, ...] = ()
    """Train once for each of these seeds, in WORKDIR/seed-N, and report mean and standard
    deviation."""

    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""

    checkpoint_every_epochs: int = 1
    """Epochs between two checkpoints."""

    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints, in addition to those at epochs."""

    checkpoint_every_minutes: float | None = None
    """Minutes between two checkpoints, in addition to those at epochs."""

    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep. The one with the lowest test error is kept as well."""

    def __post_init__(self) -> None:
        """Check everything that needs neither data nor devices."""
        for name in (
            "log_every_steps", "checkpoint_every_epochs", "checkpoint_every_steps",
            "keep_checkpoints",
        ):  # fmt: skip
            check_number(name, getattr(self, name), minimum=1)
        check_number("checkpoint_every_minutes", self.checkpoint_every_minutes, above=0)
        for seed in self.seeds:
            check_number("seeds", seed, minimum=0, maximum=LARGEST_SEED)
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"--seeds is {_listed(self.seeds)}; the seeds must differ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a training run."""

    experiment: Experiment
    machine: Machine = dataclasses.field(default_factory=Machine)
    output: Output

    def replace(self, **changes: object) -> Self:
        """A copy with other field values.

        Args:
            changes: values of fields of `Experiment`, `Machine` or `Output`, by name.
        """
        parts: JsonObject = {}
        for part in dataclasses.fields(self):
            group = getattr(self, part.name)
            names = changes.keys() & {field.name for field in dataclasses.fields(group)}
            parts[part.name] = dataclasses.replace(group, **{name: changes[name] for name in names})
        if unknown := changes.keys() - self.to_dict().keys():
            raise TypeError(f"a configuration has no field {', '.join(sorted(unknown))}")
        return type(self)(**parts)

    def to_dict(self) -> JsonObject:
        """Every field by name; names are unique across the three parts."""
        return {
            name: value
            for part in dataclasses.asdict(self).values()
            for name, value in part.items()
        }

    def to_json(self) -> str:
        """Every field as one flat JSON object, paths as strings."""
        return json.dumps(self.to_dict(), default=str, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; fields that an older version lacks get their defaults.

        Raises:
            ValueError: if the text is not the configuration of a run.
        """
        saved = read_fields(text)
        parts = {"experiment": Experiment, "machine": Machine, "output": Output}
        return cls(**{name: _part_from_json(kind, saved) for name, kind in parts.items()})


def read_fields(text: str) -> JsonObject:
    """The fields of a saved configuration, as JSON has them.

    Raises:
        ValueError: if the text is not the configuration of a run.
    """
    saved = json.loads(text)
    if not isinstance(saved, dict) or "recipe" not in saved:
        raise ValueError("not the configuration of a run")
    return saved


def _part_from_json(kind: type[Any], saved: JsonObject) -> Any:
    """One part of a configuration from the fields that JSON has for it."""
    values: JsonObject = {}
    for field in dataclasses.fields(kind):
        if field.name in saved:
            value = saved[field.name]
            if isinstance(value, list):
                value = tuple(value)
            elif isinstance(value, str) and "Path" in str(field.type):
                value = Path(value)
            values[field.name] = value
    return kind(**values)


def _check_milestones(milestones: tuple[float, ...]) -> None:
    line = f"--milestones is {_listed(milestones)}"
    if not all(0 < epoch < math.inf for epoch in milestones):
        raise UsageError(f"{line}; each epoch must be more than 0 and finite")
    increasing = sorted(set(milestones))
    if list(milestones) != increasing:
        raise UsageError(f"{line}; epochs must increase, as in {_listed(increasing)}")


def _check_address(address: str | None) -> None:
    if address is None:
        return
    host, _, port = address.rpartition(":")
    is_host = re.fullmatch(r"[^:/\s]+|\[[0-9a-fA-F:.%\w]+\]", host)
    if not (is_host and port.isdecimal() and 1 <= int(port) <= 65535):
        raise UsageError(
            f"--coordinator-address is {address!r}; it must be host:port of process 0, with a free "
            "port from 1 to 65535, such as node1:12345"
        )


def _check_colors(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3):
            raise UsageError(
                f"{flag(name)} has {len(values)} numbers; it must have 1 for gray images or 3 for "
                "RGB"
            )
        if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            bounds = "more than 0 and at most 1" if name == "std" else "from 0 to 1"
            raise UsageError(f"{flag(name)} is {_listed(values)}; each number must be {bounds}")
    if len(mean) != len(std):
        raise UsageError(
            f"--std has {len(std)} number(s) and --mean has {len(mean)}; both must have 1 for gray "
            "images or 3 for RGB"
        )


def _listed(values: Iterable[float]) -> str:
    return " ".join(map(shown, values))


def _with_flags(message: str) -> str:
    """An error of the library with flags instead of its argument names, which it begins with."""
    names = [field.name for field in dataclasses.fields(LargeMinibatchRecipe)]
    long = [name for name in names if "_" in name]  # others are also words
    pattern = rf"^({'|'.join(names)})\b|\b({'|'.join(long)})\b"
    return re.sub(pattern, lambda match: flag(match[0]), message)
