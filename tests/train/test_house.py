"""Rules for the structure and the language of the project, checked on its source."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Bottom up: a module imports only modules that precede it.
ORDER = [
    "errors",
    "data.augmentation",
    "config",
    "recipes",
    "timeline",
    "model.convolution",
    "model.resnet",
    "model.conversion",
    "model.model_file",
    "model.pretrained",
    "step.workers",
    "step.examples",
    "step.network",
    "step.noise_scale",
    "step.optimizer",
    "step.state",
    "step.train_step",
    "step.evaluation",
    "run.startup",
    "run.workarounds",
    "run.terminal",
    "run.flag_names",
    "run.flags",
    "run.help_page",
    "run.atomic",
    "data.images",
    "data.shrink",
    "data.fingerprint",
    "data.records",
    "data.verification",
    "data.formats.source",
    "data.formats.arrays",
    "data.formats.cifar",
    "data.formats.digits",
    "data.formats.fashion_mnist",
    "data.formats.image_files",
    "data.formats.csv_file",
    "data.formats.kaggle",
    "data.formats.layout",
    "data.formats.image_folder",
    "data.formats.imagenet2012",
    "data.formats.labels",
    "data.formats.splits",
    "data.formats.columns",
    "data.formats.parquet",
    "data.formats.webdataset",
    "data.synthetic",
    "data.store",
    "data.stored",
    "data.formats.tfrecord",
    "data.preparation",
    "data.published",
    "data.table",
    "data.dataset",
    "plan",
    "data.reader",
    "data.in_memory",
    "data.minibatches",
    "run.compilation_cache",
    "run.workdir",
    "run.extension",
    "run.manifest",
    "run.checkpoint",
    "run.metrics",
    "run.plots",
    "run.fonts",
    "run.display",
    "run.seeds",
    "run.report",
    "run.predictions",
    "run.confusion",
    "run.sheet",
    "run.trained",
    "run.stablehlo",
    "run.classifier",
    "cluster.agreement",
    "cluster.launchers",
    "cluster.joining",
    "cluster.stop",
    "loop",
    "command_line",
    "planning.cost_model",
    "planning.options",
    "planning.memory",
    "planning.slices",
    "planning.prediction",
    "__main__",
    "evaluate",
    "export",
    "inspect",
    "memory",
    "pod",
    "predict",
    "prepare",
]


def modules_of(package: str) -> dict[str, Path]:
    folder = ROOT / package
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_is_listed():
    assert set(modules_of("train")) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str):
    below = {f"train.{name}" for name in ORDER[: ORDER.index(module)]}
    above = {f"train.{name}" for name in ORDER} - below
    assert not imports_of(modules_of("train")[module]) & above


@pytest.mark.parametrize("path", [*(ROOT / "optax_warmup").glob("*.py")], ids=lambda p: p.stem)
def test_the_library_does_not_import_the_trainer(path: Path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert "train" not in roots
    assert not roots & {"flax", "tensorflow", "tensorflow_datasets", "grain", "tyro", "rich"}


def test_only_workers_names_a_mesh_axis():
    names = {"PartitionSpec", "Mesh", "psum", "pmean", "shard_map", "axis_name", "pcast"}
    for module, path in modules_of("train").items():
        used = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute | ast.Name)
        }
        assert bool(used & names) == (module == "step.workers"), module


def test_only_the_recipe_turns_epochs_into_steps():
    """Outside the library nothing multiplies epochs."""
    for module, path in modules_of("train").items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                assert "epochs" not in ast.unparse(node), (module, ast.unparse(node))


def test_imports_have_at_most_nine_levels():
    modules = modules_of("train")
    levels: dict[str, int] = {}
    for module in ORDER:
        imported = {name.removeprefix("train.") for name in imports_of(modules[module])}
        levels[module] = 1 + max((levels[name] for name in imported & levels.keys()), default=0)
    assert max(levels.values()) <= 9, levels


def test_the_top_level_stays_small():
    entries = {path.name for path in (ROOT / "train").iterdir()} - {"__pycache__"}
    assert len(entries) <= 22, sorted(entries)


def sources() -> list[Path]:
    folders = ("optax_warmup", "train", "benchmarks", "experiments", "docs", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", [path for path in sources() if "tests" not in path.parts])
def test_long_files_explain_their_length(path: Path):
    """A file of more than 300 lines explains its length in its docstring."""
    text = path.read_text()
    if len(text.splitlines()) > 300:
        assert "long" in (ast.get_docstring(ast.parse(text)) or ""), path


# Openings that do not name the thing, and words that this project has overused.
OPENING = re.compile(r"(Of|Whose|Where|As|To|With which|From which)\b")
ODD = re.compile(
    r"(?<!there )\b(is|are) no (?!longer|larger|more|less)\w"
    r"|\b(likewise|goes on|as ever|whose place|stands? in|shall)\b"
)


def documented(path: Path) -> Iterator[str]:
    """Docstrings of modules, classes, functions and attributes; the latter are help texts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield inspect.cleandoc(text)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_help_texts_are_plain_english(path: Path):
    for text in documented(path):
        assert not OPENING.match(text), text
        assert not ODD.search(text), text
