"""A trained network as a folder that other programs read: model.safetensors and model.json.

model.safetensors has the names and layouts of torchvision's ResNets, which timm uses too.
model.json has everything else that is needed to use the network. Nothing in either file is
evaluated or unpickled.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.numpy

from train.data.augmentation import CENTER_CROP
from train.errors import UsageError
from train.model.conversion import Tensors, from_torchvision
from train.model.resnet import ARCHITECTURES

TENSORS, DESCRIPTION = "model.safetensors", "model.json"
MAX_IMAGE_SIZE = 4096
VERSION = 1
"""Version of the format of model.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Everything about a model that is not an array.

    Attributes:
        model: name of the network's architecture.
        class_names: names of the classes, in the order of the outputs.
        image_size: side of the input S, in pixels.
        mean: mean of each color on a scale from 0 to 1, subtracted from the input.
        std: standard deviation of each color on that scale, by which the input is divided.
        crop: share of an image's shorter side that the central square input spans; None if whole
            images are resized to squares.
        has_names: whether the names are known; otherwise they are the numbers of the classes.
        dataset: name and fingerprint of the training data.
        recipe: fields of the experiment.
        step: training steps.
        top1_error: test error after that step, a fraction; None if it was not evaluated.
        versions: versions of the packages that wrote the file.
    """

    model: str
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None
    has_names: bool = True
    dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    top1_error: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The text of model.json."""
        fields = {"format": VERSION} | dataclasses.asdict(self)
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is not the description of a model.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or "format" not in fields:
            raise ValueError("not the description of a model")
        if fields.pop("format") != VERSION:
            raise ValueError("written by another version of this trainer")
        try:
            lists = {name: tuple(fields.pop(name)) for name in ("class_names", "mean", "std")}
            description = cls(**lists, **fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a field is missing, unknown or of another type: {error}") from None
        description._check()
        return description

    def _check(self) -> None:
        """Reject values that the files of this trainer never have."""

        def are(kind: Any, *values: object) -> bool:
            return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)

        fields = vars(self)
        model, crop, error = fields["model"], fields["crop"], fields["top1_error"]
        recipe = fields["recipe"] if are(Mapping, fields["recipe"]) else {}
        checks = {
            "model": are(str, model) and model in ARCHITECTURES,
            "class_names": len(self.class_names) > 0 and are(str, *self.class_names),
            "image_size": are(int, self.image_size) and 8 <= self.image_size <= MAX_IMAGE_SIZE,
            "mean": are((int, float), *self.mean),
            "std": are((int, float), *self.std),
            "crop": crop is None or crop == CENTER_CROP,
            "has_names": type(fields["has_names"]) is bool,
            "dataset": are(Mapping, fields["dataset"]),
            "recipe": are(Mapping, fields["recipe"]),
            "recipe.recipe": are(str, recipe.get("recipe", "")),
            "recipe.dataset": are(str, recipe.get("dataset", "")),
            "recipe.dtype": recipe.get("dtype", "float32") in ("float32", "bfloat16"),
            "recipe.batch_size_per_worker": are(int, recipe.get("batch_size_per_worker", 1)),
            "step": are(int, fields["step"]),
            "top1_error": error is None or are((int, float), error),
            "versions": are(Mapping, fields["versions"]),
        }
        for name, is_valid in checks.items():
            if not is_valid:
                raise ValueError(f"the value of {name} is not one that this trainer writes")


def write_model(folder: Path, description: Description, tensors: Tensors) -> None:
    """Write a model's folder; it may exist and hold an earlier model.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)  # an interrupted export must leave no mixture
    unfinished = folder / f"{TENSORS}.incomplete"
    try:
        # safetensors' own `save_file` lets nobody else read the file.
        unfinished.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        unfinished.rename(folder / TENSORS)
    finally:
        unfinished.unlink(missing_ok=True)
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")


def read_model(folder: Path) -> tuple[Description, Any, Any]:
    """Read a model's folder.

    Returns:
        The description, the parameters and the running averages.

    Raises:
        UsageError: in one line, if the folder holds no model, or a damaged one.
    """
    path = folder / DESCRIPTION
    try:
        description = Description.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{folder} holds no model: {DESCRIPTION}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} cannot be used: {' '.join(str(error).split())}") from None
    path = folder / TENSORS
    try:
        model, params, batch_stats = from_torchvision(read_tensors(path))
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    num_classes = len(params["head"]["bias"])
    num_channels = params["stem"]["conv"]["kernel"].shape[2]
    told = (description.model, len(description.class_names), len(description.mean))
    if told != (model, num_classes, num_channels):
        raise UsageError(
            f"{folder} is inconsistent: {DESCRIPTION} describes a {told[0]} with {told[1]} classes "
            f"and {told[2]} colors, and {TENSORS} holds a {model} with {num_classes} classes and "
            f"{num_channels} colors"
        )
    return description, params, batch_stats


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file, whose header is checked first.

    Raises:
        UsageError: in one line, if the file is missing or malformed.
    """
    try:
        return safetensors.numpy.load_file(path)
    except OSError as error:
        raise UsageError(str(error.strerror or error)) from None
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"not a safetensors file: {reason}") from None
