"""A trained network, from a run's workdir or from the folder that `train.export` has written."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath

from train.config import Config, Experiment, JsonObject
from train.data.augmentation import AUGMENTATIONS, CENTER_CROP
from train.data.fingerprint import recorded_in
from train.errors import UsageError, check_number, flag
from train.model.conversion import model_of
from train.model.model_file import DESCRIPTION, TENSORS, Description, read_model
from train.model.pretrained import ENDINGS, read_pretrained
from train.model.resnet import ARCHITECTURES
from train.recipes import FINE_TUNE, tfds
from train.run.checkpoint import load_network
from train.run.manifest import newest_first, versions
from train.run.metrics import read_records
from train.step.network import Network, Tree
from train.step.workers import Workers, make_workers

NEWEST, BEST = "newest", "best"

KEPT = ("recipe", "dataset", "batch_size_per_worker", "dtype")
"""Fields of a model's recipe that an evaluation needs. The size of a minibatch may change bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network with everything that is needed to use it."""

    description: Description
    network: Network
    config: Config
    """Configuration that evaluates it with one worker for each device."""
    workers: Workers


def check_checkpoint(checkpoint: str) -> None:
    """Reject the value of --checkpoint if it is neither a word for one nor a step."""
    if checkpoint not in (NEWEST, BEST) and not checkpoint.isdecimal():
        raise UsageError(f"--checkpoint is {checkpoint}; it must be a step, {NEWEST} or {BEST}")


def check_run(workdir: Path) -> None:
    """Reject the value of --workdir if there is no run in it."""
    if not (workdir / "config.json").exists():
        raise UsageError(f"--workdir {workdir} holds no run: there is no config.json in it")


def load_trained(
    path: Path, checkpoint: str = NEWEST, say: Callable[[str], None] = print
) -> Trained:
    """Load a trained network onto all devices.

    Args:
        path: a model's folder, a run's workdir, or a file of pretrained parameters.
        checkpoint: which checkpoint of a run: `NEWEST`, `BEST` or a step.
        say: called with a line for each corrupt checkpoint, and for other versions.

    Raises:
        UsageError: if the path holds no trained network.
    """
    if path.name == TENSORS and path.with_name(DESCRIPTION).exists():
        path = path.parent
    if (path / DESCRIPTION).exists():
        if checkpoint != NEWEST:
            raise UsageError(
                f"--checkpoint is {checkpoint}, but --model {path} is a model, not a run"
            )
        return _on_all_devices(*read_model(path))
    if path.suffix in ENDINGS and path.is_file():
        return _load_file(path)
    if (path / "config.json").exists():
        return _load_run(path, checkpoint, say)
    if not path.exists():
        raise UsageError(f"--model {path} does not exist")
    raise UsageError(
        f"--model {path} holds neither a model ({DESCRIPTION}) nor a run (config.json); name a "
        "folder that train.export has written, the workdir of a run, or a file of parameters, "
        f"which ends in {', '.join(ENDINGS)}"
    )


def check_initial(config: Config) -> None:
    """Check the flags about the network that a run starts from, before anything is read.

    Raises:
        UsageError: in one line, with the flag.
    """
    experiment, init_from = config.experiment, config.experiment.init_from
    if [*(config.output.workdir / "checkpoints").glob("*")]:  # a resumed run does not need it
        return
    if init_from is None:
        if experiment.recipe == FINE_TUNE:
            raise UsageError(
                f"--init-from is missing: the recipe {FINE_TUNE} starts from a trained network; to "
                "start from random parameters, use the recipe tfds"
            )
        for name in ("freeze_batch_stats", "freeze_stages"):
            if getattr(experiment, name):
                raise UsageError(
                    f"{flag(name)} keeps a part of a trained network; name one with --init-from"
                )
        return
    num_stages = len(ARCHITECTURES[experiment.model].blocks)
    check_number("freeze_stages", experiment.freeze_stages, minimum=0, maximum=num_stages)
    if not init_from.exists():
        raise UsageError(f"--init-from {init_from} does not exist")
    if init_from.is_file():
        if init_from.suffix not in ENDINGS:
            raise UsageError(
                f"--init-from {init_from} holds no pretrained parameters: the name of such a file "
                f"ends in {', '.join(ENDINGS)}"
            )
        return
    is_checkpoint = init_from.parent.name == "checkpoints" and init_from.is_dir()
    is_model = (init_from / DESCRIPTION).exists()
    if not (is_checkpoint or is_model or (init_from / "checkpoints").is_dir()):
        raise UsageError(
            f"--init-from {init_from} has no checkpoints; name the workdir of a trained run, "
            "checkpoints/STEP in one, a folder that train.export has written, or a file of "
            "pretrained parameters"
        )


def load_initial(
    experiment: Experiment, workers: Workers, say: Callable[[str], None]
) -> Network | None:
    """Load the network that a run starts from, if it does not start from random parameters.

    Args:
        experiment: the run's experiment. `init_from` is a run's workdir, one of its checkpoints, a
            model's folder, or a file of pretrained parameters.
        workers: layout over the devices; the network is replicated.
        say: called with a line for each corrupt checkpoint, and for other versions.

    Raises:
        UsageError: if the path holds no trained network, or one that the experiment cannot use.
    """
    path = experiment.init_from
    if path is None:
        return None
    if path.is_file():
        _, params, batch_stats = read_pretrained(path)
        network = Network(params=params, batch_stats=batch_stats)
    elif (path / DESCRIPTION).exists():
        _, params, batch_stats = read_model(path)
        network = Network(params=params, batch_stats=batch_stats)
    else:
        _, network = load_network(path, workers, say)
    model = model_of(network.params)
    if model not in (experiment.model, None):
        raise UsageError(
            f"--init-from {path} holds a {model}, and --model is {experiment.model}; pass --model "
            f"{model}"
        )
    num_channels = network.params["stem"]["conv"]["kernel"].shape[2]
    if num_channels != experiment.num_channels:
        raise UsageError(
            f"--init-from {path} takes images of {num_channels} color(s), and --mean and --std "
            f"have {experiment.num_channels} number(s); pass the --mean and --std of that network"
        )
    return jax.device_put(network, workers.replicated)


def _load_file(path: Path) -> Trained:
    """Load pretrained parameters, whose inputs are assumed to be those of torchvision's ResNets."""
    model, params, batch_stats = read_pretrained(path)
    num_classes = len(params["head"]["bias"])
    num_channels = params["stem"]["conv"]["kernel"].shape[2]
    base = tfds().experiment
    if num_channels != base.num_channels:
        raise UsageError(f"{path} has {num_channels} input channels; it must have 3")
    description = Description(
        model=model,
        class_names=tuple(map(str, range(num_classes))),
        has_names=False,
        image_size=base.image_size,
        mean=base.mean,
        std=base.std,
        crop=CENTER_CROP,
    )
    return _on_all_devices(description, params, batch_stats)


def _on_all_devices(description: Description, params: Tree, batch_stats: Tree) -> Trained:
    workers = make_workers(config := _config_of(description))
    network = jax.device_put(Network(params=params, batch_stats=batch_stats), workers.replicated)
    return Trained(description=description, network=network, config=config, workers=workers)


def _load_run(workdir: Path, checkpoint: str, say: Callable[[str], None]) -> Trained:
    """Load a run's checkpoint and describe it."""
    try:
        fields: JsonObject = json.loads((workdir / "config.json").read_text())
        config = Config.from_json(json.dumps(fields))
    except ValueError as error:
        if files := sorted(path.name for path in workdir.iterdir() if path.suffix in ENDINGS):
            raise UsageError(
                f"--model {workdir} is not a run; name the file in it: --model {workdir / files[0]}"
            ) from None
        raise UsageError(f"{workdir / 'config.json'} cannot be used: {error}") from None
    fingerprint = recorded_in(fields)
    errors = {
        record["step"]: record["eval/top1_error"]
        for record in read_records(workdir / "metrics.jsonl")
        if "eval/top1_error" in record
    }
    experiment, config = config.experiment, _for_evaluation(config)
    workers = make_workers(config)
    step, network = load_network(_checkpoint_in(workdir, checkpoint, errors), workers, say)
    augmentation = AUGMENTATIONS[experiment.augmentation]
    num_classes = len(network.params["head"]["bias"])
    description = Description(
        model=experiment.model,
        class_names=tuple(fingerprint.class_names if fingerprint else map(str, range(num_classes))),
        has_names=fingerprint is not None,
        image_size=experiment.image_size,
        mean=experiment.mean,
        std=experiment.std,
        crop=CENTER_CROP if augmentation.random_crop else None,
        dataset={
            "name": experiment.dataset,
            "fingerprint": fingerprint.short if fingerprint else None,
        },
        recipe=json.loads(json.dumps(dataclasses.asdict(experiment), default=str)),
        step=step,
        top1_error=errors.get(step),
        versions=versions(),
    )
    return Trained(description=description, network=network, config=config, workers=workers)


def _checkpoint_in(workdir: Path, checkpoint: str, errors: dict[int, float]) -> Path:
    """Path of a run's checkpoint; the workdir itself stands for the newest intact one."""
    if checkpoint == NEWEST:
        return workdir
    folder = workdir / "checkpoints"
    steps = [int(path.name) for path in newest_first(epath.Path(folder))]
    listed = ", ".join(map(str, reversed(steps))) or "none"
    if checkpoint == BEST:
        evaluated = [step for step in steps if step in errors]
        if not evaluated:
            raise UsageError(
                f"--checkpoint is best, but no checkpoint in {folder} was evaluated; there are "
                f"checkpoints of the steps {listed}"
            )
        return folder / str(min(evaluated, key=lambda step: (errors[step], -step)))
    if int(checkpoint) not in steps:
        raise UsageError(
            f"--checkpoint is {checkpoint}; it must be newest, best, or the step of a checkpoint: "
            f"{folder} has {listed}"
        )
    return folder / str(int(checkpoint))


def _config_of(description: Description) -> Config:
    """Configuration that evaluates a model."""
    recipe = {name: description.recipe[name] for name in KEPT if name in description.recipe}
    config = tfds().replace(
        **recipe,
        model=description.model,
        image_size=description.image_size,
        mean=description.mean,
        std=description.std,
        augmentation="shift" if description.crop is None else "crop-flip",
    )
    return _for_evaluation(config)


def _for_evaluation(config: Config) -> Config:
    """The number of workers does not affect an evaluation: one per device fits any machine."""
    return config.replace(num_workers=jax.device_count(), accumulation_steps=1, noise_scale=False)
