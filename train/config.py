"""What a run is: one frozen dataclass whose fields are the command line's flags."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import tyro

from optax_warmup import LargeMinibatchRecipe
from train.data.images import AugmentationName

Model = Literal["resnet8", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class UsageError(Exception):
    """A mistake of the user: shown as one line, without a traceback, with exit code 2."""


class RunError(Exception):
    """What keeps a run from going on, without a mistake: shown likewise, with exit code 1."""


class DataError(RunError):
    """A data set whose files are at fault."""


def refused(error: OSError) -> RunError:
    """Say in one line what the file system refused, and where."""
    where = f": {error.filename}" if error.filename else ""
    return RunError(f"{error.strerror or error}{where}")


def unusable(flag: str, folder: Path, error: OSError) -> UsageError | RunError:
    """Say in one line that a folder cannot be used: where it is no folder, that is a mistake."""
    is_mistake = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
    line = f"{flag} {folder} cannot be used: {error.strerror or error}"
    return UsageError(line) if is_mistake else RunError(line)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A training run. The paper's words: k workers with n images each, a minibatch of kn."""

    recipe: tyro.conf.Suppress[str]
    """Which recipe the defaults come from."""

    workdir: Path
    """Folder for checkpoints, metrics and curves; the same folder again resumes the run."""

    dataset: str
    """Name of the tensorflow-datasets data set, such as cifar10 or imagenet2012."""

    data: Literal["prepared", "synthetic"] = "prepared"
    """synthetic: the same minibatch of noise at every step in the place of the data set, and one of
    test images, to measure the step alone."""

    data_dir: Path | None = None
    """Where tensorflow-datasets keeps prepared data; its own default if left out."""

    model: Model
    """The network; resnet8 is a small one with a stem for small images."""

    image_size: int
    """Side of the network's input, in pixels."""

    augmentation: AugmentationName
    """crop-flip is the paper's; shift and shift-flip are for small images."""

    mean: tyro.conf.Suppress[tuple[float, ...]]
    """Mean of each colour, on the scale from 0 to 1; as many as the network's input channels."""

    std: tyro.conf.Suppress[tuple[float, ...]]
    """Standard deviation of each colour, likewise."""

    num_workers: int
    """k: the minibatch is divided among this many workers, on any number of devices."""

    batch_size_per_worker: int = 32
    """n: images per worker, over which batch normalisation takes its statistics."""

    num_epochs: float = 90
    """Length of the run."""

    num_steps: int | None = None
    """Stop after this many steps; the schedule stays that of the whole run."""

    warmup: Literal["auto", "none", "constant", "gradual"] = "auto"
    """auto: gradual if the minibatch is larger than the base's, else none."""

    warmup_epochs: float = 5
    """Length of the warmup."""

    milestones: tuple[float, ...] = (30, 60, 80)
    """Epochs at which the learning rate is divided by 10."""

    base_learning_rate: float = 0.1
    """Learning rate of the base minibatch, scaled linearly with the minibatch."""

    base_batch_size: int = 256
    """Size of the minibatch to which the base learning rate belongs."""

    optimizer: Literal["sgd", "lars", "lamb"] = "sgd"
    """sgd is the paper's; lars and lamb want learning rates of their own."""

    init_from: Path | None = None
    """A run's workdir, or one of its checkpoints, from whose network to start; the head is new
    where the number of classes differs. The warmup is constant then, unless another is named."""

    accumulation_steps: int = 1
    """Parts in which a minibatch goes through a device, to bound memory; changes no number."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; parameters and statistics are float32."""

    max_corrupt_images: int = 0
    """How many images that cannot be decoded do not end the run: in training others take their
    place, and evaluation leaves them out; corrupt_images.jsonl lists them."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when loss or gradients are not finite: stop the run, or skip the update."""

    max_nonfinite_steps: int = 10
    """How many updates of the whole run may be skipped, with --on-nonfinite skip."""

    seed: int = 0
    """Of the initial parameters, the order of the data and the augmentation."""

    seeds: tuple[int, ...] = ()
    """Make one run for each of these seeds, in WORKDIR/seed-N, and score them together."""

    noise_scale: bool = False
    """Log the gradient noise scale, in images, as train/noise_scale: past it larger minibatches
    save fewer and fewer steps. It takes two devices or accumulation steps, or more."""

    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""

    checkpoint_every_epochs: int = 1
    """Epochs between two checkpoints."""

    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints, beside those of the epochs."""

    checkpoint_every_minutes: float | None = None
    """Minutes between two checkpoints, likewise."""

    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept; the one with the least test error is too."""

    num_reader_threads: int | None = None
    """Threads that read and decode images; left out, one for each core that may be used."""

    num_reader_processes: int | None = None
    """Divide the reader threads among this many processes, 0 for none but the one that trains; left
    out, 4 threads a process where photographs are read on 8 cores or more, else 0."""

    allow_batch_size_change: bool = False
    """Let a run go on with another --num-workers or --batch-size-per-worker; the rate is rescaled,
    and warmed up again where it rises."""

    prefetch_steps: int = 1
    """Minibatches read ahead in the host's memory; two more are on their way to the devices."""

    compilation_cache_dir: Path | None = None
    """Where compiled programs are kept for the next start; $JAX_COMPILATION_CACHE_DIR or
    ~/.cache/optax-warmup if left out, for several processes none."""

    num_devices: int | None = None
    """Simulate this many CPU devices; left out, all devices of the machine are used."""

    coordinator_address: str | None = None
    """host:port of process 0, for several processes where no cluster is detected."""

    num_processes: int | None = None
    """Number of processes, with --coordinator-address."""

    process_id: int | None = None
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        """Check what can be checked without looking at the data or the devices."""
        for name in (
            "num_workers", "batch_size_per_worker", "image_size", "accumulation_steps",
            "log_every_steps", "checkpoint_every_epochs", "checkpoint_every_steps",
            "keep_checkpoints", "num_steps", "num_devices", "num_processes",
            "num_reader_threads", "prefetch_steps",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} is {value}; it must be at least 1")
        minutes = self.checkpoint_every_minutes
        if minutes is not None and not minutes > 0:
            raise UsageError(f"--checkpoint-every-minutes is {minutes}; it must be more than 0")
        if self.num_reader_processes is not None and self.num_reader_processes < 0:
            raise UsageError(
                f"--num-reader-processes is {self.num_reader_processes}; it must be at least 0"
            )
        if self.max_corrupt_images < 0:
            raise UsageError(
                f"--max-corrupt-images is {self.max_corrupt_images}; it must be at least 0"
            )
        if self.max_nonfinite_steps < 0:
            raise UsageError(
                f"--max-nonfinite-steps is {self.max_nonfinite_steps}; it must be at least 0"
            )
        for name, seed in [("seed", self.seed), *(("seeds", seed) for seed in self.seeds)]:
            if not 0 <= seed < 2**32:
                raise UsageError(f"{flag(name)} is {seed}; it must be from 0 to {2**32 - 1}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"--seeds has one of {list(self.seeds)} twice; they must differ")
        if self.image_size < 8:
            raise UsageError(f"--image-size is {self.image_size}; it must be at least 8")
        cluster = (self.coordinator_address, self.num_processes, self.process_id)
        if None in cluster and cluster != (None, None, None):
            raise UsageError(
                "--coordinator-address, --num-processes and --process-id belong together: "
                "give all three or none"
            )
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or 0):
            raise UsageError(
                f"--process-id is {self.process_id}; it must be at least 0 and less than "
                f"--num-processes, {self.num_processes}"
            )

    @property
    def batch_size(self) -> int:
        """The minibatch kn."""
        return self.num_workers * self.batch_size_per_worker

    def large_minibatch_recipe(self, num_examples: int) -> LargeMinibatchRecipe:
        """Turn epochs into steps for a training set of `num_examples` images.

        Raises:
            UsageError: if the recipe is impossible, such as a warmup longer than the run.
        """
        warmup = self.warmup
        if warmup == "auto" and self.init_from and self.batch_size > self.base_batch_size:
            warmup = "constant"  # what the paper keeps it for (section 2.2)
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
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    def to_json(self) -> str:
        """Write every field as JSON, paths as strings."""
        return json.dumps(dataclasses.asdict(self), default=str, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = tuple(value)
            elif name in PATH_FIELDS and value is not None:
                fields[name] = Path(value)
        return cls(**fields)


PATH_FIELDS = frozenset({"workdir", "data_dir", "init_from", "compilation_cache_dir"})

# What may change between the two halves of a resumed run, because no number depends on it.
RESUMABLE_FIELDS = frozenset(
    {
        "workdir", "data_dir", "num_devices", "accumulation_steps", "log_every_steps",
        "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes",
        "keep_checkpoints", "num_steps", "max_corrupt_images", "coordinator_address",
        "on_nonfinite", "max_nonfinite_steps", "compilation_cache_dir",
        "num_reader_threads", "num_reader_processes", "prefetch_steps",
        "num_processes", "process_id", "allow_batch_size_change",
    }
)  # fmt: skip

# What may change as well where that is allowed, with the rate; see `train.timeline`.
MINIBATCH_FIELDS = frozenset({"num_workers", "batch_size_per_worker"})


def flag(field: str) -> str:
    """Name a field as the command line does."""
    return "--" + field.replace("_", "-")


def differing_fields(config: Config, saved: str) -> list[str]:
    """Say in which fields a configuration differs from a saved one that it should continue.

    Args:
        config: of the run that is about to start.
        saved: what `Config.to_json` wrote in an earlier run.

    Returns:
        One phrase for each field that differs and may not.

    Raises:
        ValueError: if `saved` is something else.
    """
    before, now = json.loads(saved), json.loads(config.to_json())
    if not isinstance(before, dict) or "recipe" not in before:
        raise ValueError("no configuration of a run")
    # A field that is newer than the file had its default.
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(Config)
        if field.default is not dataclasses.MISSING
    }
    before = json.loads(json.dumps(defaults)) | before
    may_differ = RESUMABLE_FIELDS
    if config.allow_batch_size_change:
        may_differ |= MINIBATCH_FIELDS
    return [
        f"{flag(name)} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name not in may_differ and before.get(name) != now.get(name)
    ]
