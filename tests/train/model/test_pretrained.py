"""Pretrained parameters in files, and what is refused."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.train.networks import random_network, tensors_of
from train.errors import UsageError
from train.model.conversion import Tensors
from train.model.pretrained import read_pretrained


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """Parameters of a resnet18 with three classes, under torchvision's names."""
    return tensors_of(random_network("resnet18", num_classes=3), "resnet18")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def assert_read(path: Path, tensors: Tensors) -> None:
    model, params, batch_stats = read_pretrained(path)
    assert model == "resnet18"
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(batch_stats["stem"]["bn"]["var"], tensors["bn1.running_var"])


def test_safetensors_are_read(tensors: Tensors, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    assert_read(path, tensors)


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of an array of torchvision's resnet18."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    first, *rest = name.split(".")
    if first in ("conv1", "bn1"):
        return ".".join(["resnet.embedder.embedder", kinds[first[:-1]], *rest])
    if first == "fc":
        return ".".join(["classifier.1", *rest])
    stage, (block, layer, *rest) = int(first[-1]) - 1, rest
    beginning = f"resnet.encoder.stages.{stage}.layers.{block}"
    if layer == "downsample":
        kind = {"0": "convolution", "1": "normalization"}[rest[0]]
        return ".".join([beginning, "shortcut", kind, *rest[1:]])
    return ".".join([beginning, "layer", str(int(layer[-1]) - 1), kinds[layer[:-1]], *rest])


def test_a_folder_of_hugging_face_is_read(tensors: Tensors, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({hugging_face_name(k): v for k, v in tensors.items()}, path)
    config = {"downsample_in_bottleneck": False, "hidden_act": "relu", "layer_type": "basic"}
    config |= {"architecture": "resnet18.a1_in1k", "model_args": {"bn_eps": 1e-5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_read(path, tensors)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"downsample_in_bottleneck": True}, "its strides are on 1x1 convolutions"),
        ({"downsample_in_first_stage": True}, "its first stage halves the image"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': only ReLU is supported"),
        ({"batch_norm_eps": 1e-3}, "batch_norm_eps = 0.001: the epsilon of batch normalization is"),
        ({"batch_norm_eps": "1"}, "the epsilon of batch normalization is 1e-05 here"),
        ({"model_args": {"bn_eps": 0.001}}, "bn_eps = 0.001: the epsilon"),
        ({"model_args": {"output_stride": 8}}, "its last stages are dilated"),
        ({"architecture": "resnetaa50"}, "only ResNets without changes"),
    ],
)
def test_what_arrays_do_not_show_is_read_from_the_configuration(
    tensors: Tensors, tmp_path: Path, config: dict[str, Any], words: str
):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"config\.json says") as refused:
        read_pretrained(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_args": 3}', "\xff"])
def test_another_file_of_that_name_is_ignored(tensors: Tensors, tmp_path: Path, text: str):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert_read(path, tensors)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_ema"])
def test_tensors_of_pytorch_are_read(torch: Any, tensors: Tensors, tmp_path: Path, key: str | None):
    state = {f"module.{name}": torch.tensor(array) for name, array in tensors.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    assert_read(path, tensors)


def test_half_precision_of_pytorch_is_read(torch: Any, tensors: Tensors, tmp_path: Path):
    path = tmp_path / "half.pt"
    torch.save({name: torch.tensor(array).half() for name, array in tensors.items()}, path)
    model, params, _ = read_pretrained(path)
    assert model == "resnet18"
    half = tensors["fc.weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(params["head"]["kernel"], half.T)


class Evil:
    """What a pickle can do when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_a_pickle_is_not_executed(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match="PyTorch's safe loader cannot read it") as refused:
        read_pretrained(tmp_path / "evil.pth")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "unpickled").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "unpickled").exists()  # the file was dangerous


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut off", b"no file of PyTorch", bytes(4096)]
)
def test_a_damaged_file_of_pytorch_is_one_line(torch: Any, tmp_path: Path, content: bytes):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged\.pth cannot be used") as refused:
        read_pretrained(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}])
def test_a_file_without_a_network_is_one_line(torch: Any, tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"no dictionary of tensors|no array conv1\.weight"):
        read_pretrained(tmp_path / "other.pth")


def test_a_tensor_without_an_array_is_one_line(torch: Any, tmp_path: Path):
    torch.save({"conv1.weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(UsageError, match="safe loader cannot read it") as refused:
        read_pretrained(tmp_path / "sparse.pth")
    assert "\n" not in str(refused.value)


def test_a_missing_pytorch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "some.pth").write_bytes(b"")
    with pytest.raises(UsageError, match="PyTorch, which reads this format, is not installed"):
        read_pretrained(tmp_path / "some.pth")
