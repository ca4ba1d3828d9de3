"""`python -m optax_warmup`: output, files and error messages."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportPrivateUsage=false

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

import optax_warmup as ow
from optax_warmup import _preview


@pytest.fixture
def cli(capsys, monkeypatch):
    # The backend of this process is already in use and cannot be changed.
    monkeypatch.setattr(_preview.jax.config, "update", lambda *_: None)

    def run(*words):
        try:
            code = _preview.main(words)
        except SystemExit as stop:  # raised by argparse
            code = stop.code
        return code, *capsys.readouterr()

    return run


SMALL = (
    "--num-examples",
    "2560",
    "--num-workers",
    "16",
    "--num-epochs",
    "9",
    "--milestones",
    "6,8",
)


def test_the_default_is_the_recipe_of_the_paper(cli):
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert ow.LargeMinibatchRecipe(num_examples=1281167, num_workers=256).describe() in out


def test_chart_of_one_recipe():
    """Ten epochs: a ramp to 1 in four epochs, 1 until epoch 7, then 0.5."""
    epochs = np.arange(10.0)
    rates = np.float32([0, 0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.5, 0.5])
    drawn = _preview.chart({"a": (epochs, rates)}, 10, 5, log=False)
    assert drawn.splitlines() == [
        "        1 |    ***",
        "          |   *",
        "          |  *    ***",
        "          | *",
        "        0 |*",
        "          +----------",
        "           0 9 epochs",
    ]


def test_chart_on_a_logarithmic_axis():
    drawn = _preview.chart({"a": (np.arange(3.0), np.float32([1, 0.1, 0.01]))}, 3, 5, log=True)
    assert [line[11:] for line in drawn.splitlines()[:5]] == ["*", "", " *", "", "  *"]


def test_a_chart_shows_both_of_two_equal_curves():
    curve = (np.arange(4.0), np.float32([1, 1, 1, 1]))
    drawn = _preview.chart({"one": curve, "two": curve}, 4, 4, log=False)
    assert drawn.splitlines()[0].endswith("|*o*o")
    assert drawn.splitlines()[-2:] == ["           * one", "           o two"]


def test_chart_of_a_recipe_and_its_changes(cli):
    code, out, _ = cli(*SMALL, "--vs", "warmup=none", "num-epochs=8.5", "--vs", "warmup=constant")
    assert code == 0
    assert "== warmup=none num-epochs=8.5" in out
    assert "           + warmup=constant" in out


def test_csv_has_the_exact_rate_of_every_step(cli, tmp_path):
    code, out, _ = cli(*SMALL, "--vs", "warmup=none", "--csv", str(tmp_path / "rates.csv"))
    assert code == 0
    assert f"wrote {tmp_path / 'rates.csv'}" in out
    rows = list(csv.DictReader((tmp_path / "rates.csv").read_text().splitlines()))
    recipe = ow.LargeMinibatchRecipe(
        num_examples=2560, num_workers=16, num_epochs=9, milestones=(6, 8)
    )
    mine = [row for row in rows if row["recipe"] == "recipe"]
    assert [int(row["step"]) for row in mine] == list(range(recipe.num_steps))
    got = np.float32([row["learning_rate"] for row in mine])
    np.testing.assert_array_equal(got, recipe.schedule()(np.arange(recipe.num_steps)))
    np.testing.assert_allclose([float(row["epoch"]) for row in mine], np.arange(45) / 5, rtol=1e-5)
    assert len(rows) == 2 * recipe.num_steps


def test_a_run_of_one_step(cli, tmp_path):
    words = ("--num-examples", "8192", "--num-epochs", "1", "--warmup-epochs", "0")
    code, *_ = cli(*words, "--csv", str(tmp_path / "rates.csv"))
    assert code == 0
    assert (tmp_path / "rates.csv").read_text().splitlines()[1:] == ["recipe,0,0,3.20000005"]


def test_png(cli, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = cli(*SMALL, "--png", str(tmp_path / "rates.png"), "--log")
    assert (code, err) == (0, "")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_png_has_steps(cli, tmp_path, monkeypatch):
    """With two steps per epoch a drop would otherwise be a slope over half an epoch."""
    figures = []
    monkeypatch.setattr(
        pytest.importorskip("matplotlib.figure").Figure,
        "savefig",
        lambda self, *_, **__: figures.append(self),
    )
    words = ("--num-examples", "16384", "--num-epochs", "9", "--milestones", "6")
    assert cli(*words, "--png", str(tmp_path / "rates.png"))[0] == 0
    (line,) = figures[0].axes[0].lines
    assert line.get_drawstyle() == "steps-post"


def test_output_fits_a_narrow_terminal(cli, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = cli()
    assert code == 0
    assert all(len(line) <= 40 for line in out.splitlines())
    assert "milestone, epoch 80      12480  0.0032" in out.splitlines()


def test_json_round_trip(cli, tmp_path):
    code, out, _ = cli(*SMALL, "--json")
    assert code == 0
    assert json.loads(out)["milestones"] == [6, 8]
    (tmp_path / "mine.json").write_text(out)
    code, out, _ = cli(str(tmp_path / "mine.json"), "--num-epochs", "12", "--json")
    assert json.loads(out)["num_epochs"] == 12
    assert json.loads(out)["num_workers"] == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-workers", "0"], "--num-workers must be an integer from 1"),
        (["--num-workers", "many"], "--num-workers must be an integer from 1"),
        (["--milestones", "60,30"], "--milestones must increase"),
        (["--warmup", "linear"], "--warmup must be one of"),
        (["--epochs", "3"], "unrecognized arguments: --epochs; did you mean --num-epochs?"),
        (["--lr=3"], "unrecognized arguments: --lr=3; did you mean --base-learning-rate?"),
        (["--num_worker", "3"], "did you mean --num-workers?"),
        (
            ["--num-examples", "162"],
            "--num-workers * --batch-size-per-worker = 256 * 32 = 8192 must be at most "
            "--num-examples = 162, such as with --num-workers = 5",
        ),
        (["--num-epochs", "4"], "--warmup-epochs must be at most --num-epochs = 4, got 5"),
        (["--width", "wide"], "argument --width: invalid int value: 'wide'"),
        (["--width", "5"], "--width must be from 10 to 500"),
        (["--vs", "epochs=3"], "--vs must be FIELD=VALUE with FIELD one of num_examples"),
        (["--vs", "warmup"], "--vs must be FIELD=VALUE"),
        (["--vs", "warmup_epochs=99"], "warmup_epochs must be at most num_epochs = 90"),
        (["nowhere.json"], "nowhere.json: No such file or directory"),
        (["--csv", "/nowhere/rates.csv"], "--csv /nowhere/rates.csv: No such file or directory"),
        (
            [f"--vs=num_epochs={90 + n}" for n in range(9)],
            "at most 8 recipes fit in one chart, got 10",
        ),
    ],
)
def test_errors_are_one_line_and_exit_2(cli, words, message):
    code, _, err = cli(*words)
    assert code == 2
    assert err.startswith("optax_warmup: ")
    assert message in err
    assert err.count("\n") == 1


# A sensible and a silly value of every flag.
VALUES = {
    "files": ([], ["nowhere.json"]), "--num-examples": (["5000000"], ["-1"]),
    "--num-workers": (["8"], ["0"]), "--batch-size-per-worker": (["16"], ["1.5"]),
    "--num-epochs": (["30"], ["nan"]), "--warmup": (["none"], ["linear"]),
    "--warmup-epochs": (["2"], ["100"]), "--milestones": (["10,20"], ["20,10"]),
    "--decay-factor": (["0.2"], ["2"]), "--base-learning-rate": (["0.2"], ["inf"]),
    "--base-batch-size": (["512"], ["0"]), "--scaling": (["sqrt"], ["cubic"]),
    "--vs": (["warmup=none"], ["warmup"]), "--png": (["p.png"], ["nowhere/p.png"]),
    "--csv": (["r.csv"], ["nowhere/r.csv"]), "--json": ([], ["=yes"]), "--log": ([], ["=yes"]),
    "--width": (["60"], ["5"]), "--height": (["10"], ["tall"]),
}  # fmt: skip
FLAGS = [
    action.option_strings[0] if action.option_strings else action.dest
    for action in _preview._parser()._actions
    if action.dest != "help"
]


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_takes_sensible_values_and_rejects_silly_ones(cli, flag, tmp_path, monkeypatch):
    """A new flag must be added to VALUES."""
    monkeypatch.chdir(tmp_path)
    sensible, silly = VALUES[flag]
    name = [flag] if flag.startswith("--") else []
    code, _, err = cli(*name, *sensible)
    assert (code, err) == (0, "")
    code, out, err = cli(*([flag + silly[0]] if silly[0][0] == "=" else [*name, *silly]))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert (flag if name else silly[0]) in err


def test_an_unknown_picture_format(cli):
    pytest.importorskip("matplotlib")
    code, _, err = cli("--png", "rates.movie")
    assert code == 2
    assert err.startswith("optax_warmup: --png rates.movie: Format 'movie' is not")
    assert err.count("\n") == 1


def test_a_bad_file_is_named(cli, tmp_path):
    (tmp_path / "mine.json").write_text('{"version": 1, "num_examples": 9, "speed": 1}')
    code, _, err = cli(str(tmp_path / "mine.json"))
    assert code == 2
    assert "mine.json: unknown fields ['speed']" in err


def test_without_matplotlib(cli, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = cli("--png", str(tmp_path / "rates.png"))
    assert code == 2
    assert err == (
        "optax_warmup: --png needs matplotlib, which the extra `optax-warmup[plot]` installs\n"
    )


def test_as_a_command():
    """A separate process, with an output encoding without Greek letters."""
    done = subprocess.run(
        [sys.executable, "-m", "optax_warmup", "--log"],
        capture_output=True,
        text=True,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "14040 steps = 90 epochs x 156 steps" in done.stdout
