"""The structure of the house, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the bottom up: a module imports only what stands before it.
ORDER = [
    "data.images",
    "config",
    "run.compilation_cache",
    "recipes",
    "step.workers",
    "timeline",
    "data.builders.digits",
    "data.builders.fashion_mnist",
    "data.builders.image_folder",
    "data.builders.imagenet2012",
    "data.synthetic",
    "data.reader",
    "data.minibatches",
    "model.convolution",
    "model.resnet",
    "step.optimizer",
    "step.noise_scale",
    "step.state",
    "step.train_step",
    "run.checkpoint",
    "cluster.agreement",
    "run.workdir",
    "run.corrupt",
    "run.metrics",
    "step.evaluation",
    "run.plots",
    "run.display",
    "run.report",
    "cluster.stop",
    "loop",
    "seeds",
    "command_line",
    "cluster.launchers",
    "prepare",
    "evaluate",
    "__main__",
    "inspect",
    "planning.cost_model",
    "memory",
    "pod",
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


def test_every_module_of_the_trainer_has_its_place():
    assert set(modules_of("train")) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str):
    below = {f"train.{name}" for name in ORDER[: ORDER.index(module)]}
    above = {f"train.{name}" for name in ORDER} - below
    assert not imports_of(modules_of("train")[module]) & above


@pytest.mark.parametrize("path", [*(ROOT / "optax_warmup").glob("*.py")], ids=lambda p: p.stem)
def test_the_library_knows_nothing_of_the_trainer(path: Path):
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
