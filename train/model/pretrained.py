"""Pretrained ResNets from files of torchvision, timm and Hugging Face.

A safetensors file holds arrays alone. What arrays cannot show, such as strides, is checked in the
config.json next to it, if there is one. A .pth file is a pickle; PyTorch reads it with
`weights_only=True`, which builds nothing but tensors.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.errors import UsageError
from train.model.conversion import Tensors, Tree, from_torchvision
from train.model.model_file import read_tensors
from train.model.resnet import BN_EPSILON

SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin", ".tar")
ENDINGS = (*SAFETENSORS, *TORCH)

STATE_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
"""Keys under which training scripts keep the parameters in a .pth file."""


def read_pretrained(path: Path) -> tuple[str, Tree, Tree]:
    """Read a pretrained ResNet.

    Args:
        path: a .safetensors file, or a .pth file, which needs PyTorch.

    Returns:
        The name of the architecture, the parameters and the running averages.

    Raises:
        UsageError: in one line, if the file holds no ResNet as in `ARCHITECTURES`.
    """
    try:
        _check_config(path.with_name("config.json"))
        read = read_tensors if path.suffix in SAFETENSORS else _read_torch
        return from_torchvision(read(path))
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None


def _read_torch(path: Path) -> Tensors:
    """Read the tensors of a .pth file."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            "PyTorch, which reads this format, is not installed: pip install torch, or convert the "
            "file to .safetensors"
        ) from None
    try:
        return _tensors_in(torch.load(path, map_location="cpu", weights_only=True), torch.Tensor)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(error.strerror or str(error)) from None
    except Exception as error:  # PyTorch raises whatever its parsers run into
        # Only the first sentence: the next ones advise to unpickle the file.
        reason = re.split(r"\.\s|\n", str(error))[0].rstrip(".") or type(error).__name__
        raise UsageError(f"PyTorch's safe loader cannot read it: {reason}") from None


def _tensors_in(found: Any, kind: type[Any]) -> Tensors:
    """Arrays of the tensors in what PyTorch has read: a dictionary, or one inside another."""
    for key in STATE_KEYS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict):
        raise UsageError("it holds no dictionary of tensors")
    return {
        str(name): (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in found.items()
        if isinstance(tensor, kind)
    }


def _check_config(path: Path) -> None:
    """Reject a network whose config.json says that it differs in what its arrays do not show."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # there is none, or it belongs to something else
    if not isinstance(config, dict):
        return
    extra = config.get("model_args")
    settings = config | (extra if isinstance(extra, dict) else {})
    for name, is_supported, what in CHECKS:
        if name in settings and not is_supported(settings[name]):
            raise UsageError(f"{path.name} says {name} = {settings[name]!r}: {what}")


def _is_plain(name: Any) -> bool:
    """Whether a name of timm, such as resnet50.a1_in1k, is that of a ResNet of 2015."""
    return re.fullmatch(r"(\w+_)?resnet\d+(\..*)?", str(name)) is not None


def _is_our_epsilon(value: Any) -> bool:
    return isinstance(value, float) and math.isclose(value, BN_EPSILON, rel_tol=1e-5)


CHECKS: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "downsample_in_bottleneck",
        lambda value: not value,
        "its strides are on 1x1 convolutions, and here they are on the 3x3 ones",
    ),
    (
        "downsample_in_first_stage",
        lambda value: not value,
        "its first stage halves the image, and here it does not",
    ),
    ("hidden_act", lambda value: value == "relu", "only ReLU is supported"),
    (
        "output_stride",
        lambda value: value == 32,
        "its last stages are dilated, and here they stride",
    ),
    ("architecture", _is_plain, "only ResNets without changes to stem, blocks or pooling are read"),
    *(
        (name, _is_our_epsilon, f"the epsilon of batch normalization is {BN_EPSILON:g} here")
        for name in ("batch_norm_eps", "bn_eps", "norm_eps")
    ),
]
"""Names in config.json, whether a value is supported, and what it means if it is not."""
