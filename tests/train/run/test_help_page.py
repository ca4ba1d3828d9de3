"""Help pages: the real words, each flag once, readable in narrow terminals."""

import re
from collections.abc import Callable

import pytest

from train import evaluate, export, inspect, memory, pod, predict, prepare
from train.__main__ import main as train
from train.recipes import RECIPES

MAINS: dict[str, Callable[[list[str]], int]] = {
    "train": train, "train.inspect": inspect.main, "train.evaluate": evaluate.main,
    "train.export": export.main, "train.predict": predict.main,
    "train.memory": memory.main, "train.pod": pod.main, "train.prepare": prepare.main,
}  # fmt: skip
USAGES = {
    "train": "[RECIPE] [OPTIONS]",
    **{f"train {name}": f"{name} [OPTIONS]" for name in RECIPES},
    "train.inspect": "[RECIPE] [OPTIONS]",
    "train.inspect tfds": "tfds [OPTIONS]",
    "train.evaluate": "[OPTIONS]",
    "train.export": "--workdir PATH --out FOLDER [OPTIONS]",
    "train.predict": "[PATHS] --model FOLDER [OPTIONS]",
    "train.memory": "RECIPE [OPTIONS]",
    "train.pod": "RECIPE [OPTIONS]",
    "train.prepare image-folder": "image-folder PATH --name NAME [OPTIONS]",
    "train.prepare parquet": "parquet [FILES] --name NAME [OPTIONS]",
    "train.prepare csv": "csv FILE --name NAME [OPTIONS]",
    "train.prepare verify": "verify NAME [OPTIONS]",
    "train.prepare cifar10": "NAME [OPTIONS]",
}


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def read(command: str, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        name, *words = command.split()
        with pytest.raises(SystemExit) as ending:
            MAINS[name]([*words, "--help"])
        assert not ending.value.code
        return capsys.readouterr().out

    return read


@pytest.mark.parametrize("command", USAGES)
def test_the_usage_line_has_the_real_words(command: str, page: Callable[[str, int], str]):
    name = command.split()[0]
    first = page(command, 100).splitlines()[0]
    assert first == f"usage: python -m {name} {USAGES[command]}"


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", USAGES)
def test_a_page_fits_the_terminal_and_lists_each_flag_once(
    command: str, columns: int, page: Callable[[str, int], str]
):
    text = page(command, columns)
    # Only a word that is longer than the line may stick out.
    assert not [line for line in text.splitlines() if len(line) > columns and len(line.split()) > 2]
    listed = re.findall(r"^  (--[\w-]+|[A-Z]+)\b", text, re.MULTILINE)
    assert listed
    assert len(listed) == len(set(listed))
    for odd in ("None", "(default: )", "False", "{prepared", "STR"):
        assert odd not in text
    for paragraph in re.findall(r"^ {6}.*(?:\n {6}.*)*", text, re.MULTILINE):
        words = paragraph.split()
        assert not ("(required)" in paragraph and "(default" in paragraph)
        assert not ("Default:" in words and "(default:" in words), paragraph


@pytest.mark.parametrize("columns", [80])
def test_the_flags_of_a_run_are_grouped(columns: int, page: Callable[[str, int], str]):
    text = page("train", columns)
    groups = [text.index(f"\n{title}: ") for title in ("Experiment", "Machine", "Output")]
    assert groups == sorted(groups)
    assert groups[0] < text.index("  --seed INT") < groups[1] < text.index("  --num-devices INT")
    assert text.index("  --num-devices INT") < groups[2] < text.index("  --workdir PATH")
    for name in RECIPES:
        assert re.search(rf"  {name}: (Train|Fine-tune) ", text)


def test_the_defaults_are_those_of_the_recipe_and_the_optimizer(page: Callable[[str, int], str]):
    def default(text: str, flag: str) -> str:
        return re.findall(rf"  {flag} .*(?:\n {{6}}.*)*?\(default: (.*?)\)", text)[0]

    assert default(page("train imagenet", 100), "--base-learning-rate") == "0.1"
    lars = page("train imagenet --optimizer lars", 100)
    assert default(lars, "--base-learning-rate") == "0.3125"
    assert default(lars, "--optimizer") == "lars"
    assert default(page("train imagenet --optimizer lamb", 100), "--scaling") == "sqrt"
    assert default(page("train imagenet --nonsense", 100), "--base-learning-rate") == "0.1"
