"""Public names, docstrings and imports of the package."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optax_warmup as ow

PACKAGE = Path(ow.__file__).parent
PUBLIC = {
    "BatchSizePhase",
    "BatchSizePhases",
    "FoldedMomentumState",
    "LargeMinibatchRecipe",
    "WarmupPlateauState",
    "constant_warmup",
    "current_learning_rate",
    "damped_warmup",
    "epochs_to_steps",
    "exponential_damping",
    "exponential_warmup",
    "folded_momentum",
    "gradual_warmup",
    "gradual_warmup_scheduler",
    "inverse_sqrt_decay",
    "linear_scaling",
    "piecewise_values",
    "ramp_warmup",
    "sqrt_scaling",
    "warmup_piecewise_decay",
    "warmup_stable_decay",
    "warmup_then_plateau",
}
STATES = {"FoldedMomentumState", "WarmupPlateauState"}


def test_exported_names():
    assert set(ow.__all__) == PUBLIC
    assert ow.__all__ == sorted(ow.__all__)
    visible = {name for name in dir(ow) if not name.startswith("_")}
    assert visible == PUBLIC
    assert re.fullmatch(r"\d+\.\d+\.\d+", ow.__version__)
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", sorted(PUBLIC - STATES))
def test_docstrings_have_every_part_in_order(name):
    text = inspect.getdoc(getattr(ow, name)) or ""
    parts = ["Args:", "Returns:", "Examples:", "Source:"]
    if inspect.isclass(getattr(ow, name)):
        parts.remove("Returns:")
    positions = [text.find(f"\n{part}\n") for part in parts]
    assert min(positions) > 0, dict(zip(parts, positions, strict=True))
    assert positions == sorted(positions)
    assert "optax_warmup as ow" in text
    for argument in inspect.signature(getattr(ow, name)).parameters:
        assert re.search(rf"^  {argument}: ", text, re.MULTILINE), argument


@pytest.mark.parametrize(
    "argument", ["init_value", "peak_value", "warmup_steps", "after", "skip_init", "dtype"]
)
def test_the_package_describes_the_arguments_of_all_schedules(argument):
    assert re.search(rf"^- .*`{argument}\b", ow.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_docstrings_are_sentences_or_noun_phrases(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "").partition(" ")[0]
            assert first not in {"Of", "Whose", "Where", "As", "To", "What", "How"}, node


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_imports_only_jax_optax_numpy(path):
    """Functions may also import matplotlib."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    allowed = {"jax", "optax", "numpy", "optax_warmup", *sys.stdlib_module_names}
    assert roots(top) <= allowed
    everywhere = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert roots(everywhere) <= allowed | {"matplotlib"}


def roots(nodes):
    names = set()
    for node in nodes:
        modules = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
        names |= {module.split(".")[0] for module in modules}
    return names


def test_imports_run_one_way():
    """Each module imports only modules before it in this order."""
    order = ["_checks", "_json", "_epochs", "_table", "_scaling", "_warmup", "_ramps", "_decay"]
    order += ["_recipe", "_phase", "_phases", "_updates", "_momentum", "_plateau", "_current"]
    order += ["__init__", "_preview", "__main__"]
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(order)
    for i, name in enumerate(order):
        if name == "__init__":
            continue
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        used = set(re.findall(r"^from optax_warmup\.(\w+) import", text, re.MULTILINE))
        used |= {
            found.strip()
            for line in re.findall(r"^from optax_warmup import (.+)$", text, re.MULTILINE)
            for found in line.split(",")
            if found.strip().startswith("_")
        }
        assert used <= set(order[:i]), name


def test_import_is_light_and_starts_no_backend():
    """Importing the package loads no plotting library and starts no device."""
    code = (
        "import sys, optax_warmup; from jax._src import xla_bridge as x;"
        "assert not x._backends, x._backends;"
        "assert not {'matplotlib', 'train', 'flax', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
