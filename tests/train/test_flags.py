"""Every flag of every command takes a sensible value and rejects a silly one in one line.

The flags are read from the dataclasses: a new flag without an entry here fails.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx

from train import evaluate, export, inspect, memory, pod, predict, prepare
from train.__main__ import main as train
from train.command_line import parse_options, parse_run
from train.config import Experiment, Machine, Output
from train.data import published
from train.errors import flag
from train.model.conversion import to_torchvision
from train.model.model_file import Description, write_model
from train.recipes import RECIPES, digits
from train.run.flags import Flag, flags_of
from train.step.network import make_network

Main = Callable[[list[str]], int]
Values = dict[str, tuple[str, str]]
"""A sensible and a silly value of each field, as words; a silly "=yes" follows a switch."""

SWITCH = ("", "=yes")
CLUSTER = "--coordinator-address g:1 --num-processes 3 --process-id 0"

RUN: Values = {
    "dataset": ("cifar10", "imagnet2012"), "data": ("synthetic", "real"),
    "model": ("resnet18", "resnet51"), "image_size": ("64", "0"),
    "augmentation": ("shift-flip crop-flip", "flip"), "mean": ("0.4", "124"), "std": ("0.5", "0"),
    "num_workers": ("16", "0"), "batch_size_per_worker": ("64", "x"), "num_epochs": ("31", "nan"),
    "warmup": ("constant", "linear"), "warmup_epochs": ("2", "-1"),
    "milestones": ("7 8.5", "60 30"), "base_learning_rate": ("0.3", "-1"),
    "base_batch_size": ("128", "0"), "scaling": ("sqrt", "cubic"), "optimizer": ("lars", "adam"),
    "momentum": ("0.8", "1"), "weight_decay": ("5e-5", "-1"), "init_from": ("TRAINED", "nowhere"),
    "freeze_batch_stats": SWITCH, "freeze_stages": ("2", "-1"),
    "head_learning_rate_multiplier": ("20", "0"),
    "dtype": ("bfloat16", "float8"), "noise_scale": SWITCH, "seed": ("3", "1.5"),
    "data_dir": ("data", "FILE"), "num_steps": ("7", "0"), "num_devices": ("2", "0"),
    "accumulation_steps": ("2", "-2"), "allow_data_change": SWITCH,
    "allow_batch_size_change": SWITCH, "on_nonfinite": ("skip", "ignore"),
    "max_nonfinite_steps": ("3", "-1"), "num_reader_threads": ("3", "0"),
    "num_reader_processes": ("2", "-1"), "prefetch_steps": ("4", "0"),
    "max_decoded_gb": ("0.5", "-1"),
    "compilation_cache_dir": ("compiled", "FILE"), "coordinator_address": ("h:1", "h"),
    "num_processes": ("2", "0"), "process_id": ("1", "3"), "workdir": ("run", "FILE"),
    "coordinator_timeout_seconds": ("60", "0"), "extend": SWITCH,
    "seeds": ("1 2", "1 1"), "log_every_steps": ("5", "0"), "checkpoint_every_epochs": ("3", "0"),
    "checkpoint_every_steps": ("4", "0.5"), "checkpoint_every_minutes": ("1.5", "inf"),
    "keep_checkpoints": ("2", "0"),
}  # fmt: skip
EVALUATE: Values = {
    "workdir": ("WORKDIR", "nowhere"), "model": ("MODEL", "nowhere"),
    "checkpoint": ("best", "first"),
    "dataset": ("digits", "no_such_data"), "predictions": ("p.csv", "nowhere/p.csv"),
    "allow_data_change": SWITCH, "data_dir": ("data", "FILE"),
    "compilation_cache_dir": ("compiled", "FILE"), "num_devices": ("2", "0"),
}  # fmt: skip
EXPORT: Values = {
    "workdir": ("WORKDIR", "nowhere"), "out": ("model", "FILE"), "checkpoint": ("best", "first"),
    "format": ("stablehlo", "pickle"),
}  # fmt: skip
PREDICT: Values = {
    "paths": ("a.png b.png", "."), "model": ("MODEL", "nowhere"),
    "checkpoint": ("best", "first"), "top": ("3", "0"), "format": ("csv", "xml"),
    "out": ("p.csv", "nowhere/p.csv"), "sheet": ("sheet.png", "nowhere/sheet.png"),
    "compilation_cache_dir": ("compiled", "FILE"),
}  # fmt: skip
STEP: Values = {
    "recipe": ("imagenet", "imagnet"), "workers_per_device": ("2", "0"),
    "accumulation_steps": ("2", "3"), "model": ("resnet18", "resnet51"),
    "image_size": ("64", "0"), "num_classes": ("10", "0"), "dtype": ("float32", "float16"),
    "dataset": ("fashion_mnist", "no_such_data"), "data_dir": ("data", "FILE"),
}  # fmt: skip
MEMORY: Values = STEP | {"memory_bytes": ("1000000000", "-1"), "num_devices": ("2", "0")}
POD: Values = STEP | {
    "topology": ("v5e:2x4", "v9:2x4"), "batch_size_per_worker": ("64", "0"),
    "clock_hz": ("1e9", "0"), "hbm_bytes": ("1000", "0.5"), "link_bandwidth": ("1e9", "inf"),
    "num_links": ("1", "0"), "latency": ("0", "-1"), "overlap": ("0.5", "1.5"),
    "step_seconds": ("0.1", "nan"), "num_gpus": ("8 16", "12"), "gpus_per_node": ("4", "0"),
    "intra_node_bandwidth": ("1e9", "0"), "inter_node_bandwidth": ("1e9", "-1"),
    "out": ("pod", "FILE"),
}  # fmt: skip
SOURCE: Values = {
    "name": ("mine", "My-Data"), "held_out": ("0.2", "1"), "shorter_side": ("256", "3"),
    "skip_corrupt": SWITCH, "overwrite": SWITCH, "data_dir": ("data", "FILE"),
    "path": ("PATH", "nowhere"),
}  # fmt: skip
FILES: Values = {
    **SOURCE, "files": ("a b", "nowhere"), "split": ("train=a test=b", "holdout=PARQUET"),
    "image_column": ("image", "img"), "label_column": ("label", "class"),
}  # fmt: skip
PUBLISHED: Values = {
    "name": ("cifar10", "cifar11"), "archives": (".", "nowhere"), "shorter_side": ("256", "3"),
    "skip_corrupt": SWITCH, "data_dir": ("data", "FILE"),
}  # fmt: skip
VERIFY: Values = {"name": ("digits", "didgits"), "skip_corrupt": SWITCH, "data_dir": ("d", "FILE")}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and the words that it needs beside the flag under test."""

    main: Main
    words: str
    flags: list[Flag]
    values: Values
    parse: Callable[[list[str]], Any]

    def required(self, field: str) -> list[str]:
        """Values of the other words that must be present."""
        return [
            word
            for one in self.flags
            if one.is_required and one.field != field
            for word in _words(one, self.values[one.field][0])
        ]


def _words(one: Flag, value: str) -> list[str]:
    if value.startswith("="):
        return [one.name + value]
    return [*([] if one.positional else [one.name]), *value.split()]


def _run(recipe: str, main: Main) -> Command:
    flags = [one for part in (Experiment, Machine, Output) for one in flags_of(part)]
    # The recipe provides what the dataclasses require.
    flags = [dataclasses.replace(one, is_required=False) for one in flags]
    return Command(main, recipe, flags, RUN, parse_run)


def _options(main: Main, options: type[Any], values: Values, words: str = "") -> Command:
    def parse(args: list[str]) -> Any:
        return parse_options(options, args[len(words.split()) :], "prog")

    return Command(main, words, flags_of(options), values, parse)


COMMANDS: dict[str, Command] = {
    **{f"train {recipe}": _run(recipe, train) for recipe in RECIPES},
    **{f"inspect {recipe}": _run(recipe, inspect.main) for recipe in RECIPES},
    "evaluate": _options(evaluate.main, evaluate.Options, EVALUATE),
    "export": _options(export.main, export.Options, EXPORT),
    "predict": _options(predict.main, predict.Options, PREDICT),
    "memory": _options(memory.main, memory.Options, MEMORY),
    "pod": _options(pod.main, pod.Options, POD),
    **{
        f"prepare {name}": _options(prepare.main, format_.Options, FILES, name)
        for name, format_ in prepare.FORMATS.items()
    },
    "prepare published": _options(prepare.main, published.Options, PUBLISHED),
    "prepare verify": _options(prepare.main, prepare.Verify, VERIFY, "verify"),
}
CASES = [(name, one.field) for name, command in COMMANDS.items() for one in command.flags]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths that stand for the words in capitals."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("")
    (folder / "trained" / "checkpoints").mkdir(parents=True)
    (folder / "run").mkdir()
    network = make_network(digits().experiment, 10)
    params, stats = (
        nnx.to_pure_dict(nnx.state(network, kind)) for kind in (nnx.Param, nnx.BatchStat)
    )
    experiment = digits().experiment
    description = Description(
        model=experiment.model, class_names=tuple("0123456789"), image_size=8,
        mean=experiment.mean, std=experiment.std, crop=None,
    )  # fmt: skip
    write_model(folder / "model", description, to_torchvision(params, stats, "resnet8", 0))
    (folder / "run" / "config.json").write_text(digits().to_json())
    table = pa.table({"image": [b"", b""], "label": [0, 1]})
    pq.write_table(table, folder / "train.parquet")
    return {
        "FILE": str(folder / "file"),
        "TRAINED": str(folder / "trained"),
        "WORKDIR": str(folder / "run"),
        "MODEL": str(folder / "model"),
        "PARQUET": str(folder / "train.parquet"),
    }


def fill_in(words: list[str], places: dict[str, str]) -> list[str]:
    for name, path in places.items():
        words = [path if word == name else word.replace(f"={name}", f"={path}") for word in words]
    return words


def context(name: str, field: str) -> str:
    """Flags without which the one under test cannot be right."""
    if name == "pod" and field not in ("topology", "step_seconds"):
        workers = " --workers-per-device 2" if field == "accumulation_steps" else ""
        return ("--step-seconds 1" if field in pod.FOR_GPUS else "--topology v5e:2x4") + workers
    if field in ("freeze_batch_stats", "freeze_stages"):
        return "--init-from TRAINED"
    if name == "predict" and field != "paths":
        return "a.png"
    if name == "evaluate" and field not in ("workdir", "model"):
        return "--model MODEL" if field == "dataset" else "--model MODEL --dataset cifar10"
    if name == "train fine-tune" and field == "dataset":
        return "--init-from TRAINED"
    if field in ("coordinator_address", "num_processes", "process_id"):
        return CLUSTER
    if name == "memory" and field == "accumulation_steps":
        return "--workers-per-device 2"
    if field == "mean" and not name.endswith(("digits", "mnist")):
        return "--std 0.4"
    if field == "std" and not name.endswith(("digits", "mnist")):
        return "--mean 0.4"
    return ""


@pytest.mark.parametrize(("name", "field"), CASES)
def test_a_sensible_value_is_accepted_and_has_an_effect(
    name: str, field: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[name]
    [one] = [one for one in command.flags if one.field == field]
    value = command.values[field][0]
    # Choices have no value that differs from the default of each recipe.
    value = value.split()[name.endswith("mnist")] if field == "augmentation" else value
    words = [*command.words.split(), *command.required(field), *context(name, field).split()]
    parsed = command.parse(fill_in(_appended(words, one, value), places))
    if one.is_required or (name == "evaluate" and field in ("workdir", "model")):
        assert str(_read(parsed, field)) in fill_in([value], places)
    elif field in ("topology", "step_seconds") or name.startswith(("train", "inspect")):
        default = one.default if name == "pod" else RECIPES[name.split()[1]]().to_dict()[field]
        assert _read(parsed, field) != default
    else:
        plain = command.parse(fill_in(words, places))
        assert _read(parsed, field) != _read(plain, field)


def _appended(words: list[str], one: Flag, value: str) -> list[str]:
    """The words with the flag under test; a positional one precedes flags with several values."""
    own = _words(one, value)
    return [*own, *words] if one.field == "recipe" else [*words, *own]


def _read(parsed: Any, field: str) -> Any:
    return parsed.to_dict()[field] if hasattr(parsed, "to_dict") else getattr(parsed, field)


@pytest.mark.parametrize(("name", "field"), CASES)
def test_a_silly_value_is_reported_in_one_line(
    name: str,
    field: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[name]
    [one] = [one for one in command.flags if one.field == field]
    value = command.values[field][1]
    words = [*command.words.split(), *command.required(field), *context(name, field).split()]
    if field in ("image_column", "label_column"):
        words += ["PARQUET"]
    if name == "evaluate" and field == "workdir":
        words = []
    code = command.main(fill_in(_appended(words, one, value), places))
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1
    assert (value if one.positional else flag(field)) in said.err
    assert said.out == ""
    assert f" {field} " not in said.err if "_" in field else True
