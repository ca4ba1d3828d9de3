"""The command line: its flags, and one clear line for each mistake."""

from pathlib import Path

import pytest

from train.__main__ import main
from train.command_line import parse_run
from train.errors import UsageError
from train.recipes import RECIPES, digits


def test_the_default_recipe_is_digits():
    assert parse_run([]) == digits()
    assert parse_run(["--seed", "3"]) == digits().replace(seed=3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_selected_by_name(name: str):
    assert parse_run([name]) == RECIPES[name]()


def test_flags_override_a_recipe():
    flags = (
        "imagenet --workdir here --num-workers 16 --batch-size-per-worker 64 --num-epochs 9.5 "
        "--num-steps 7 --warmup constant --warmup-epochs 0.5 --base-learning-rate 0.2 "
        "--accumulation-steps 2 --model resnet18 --dtype bfloat16 --num-devices 4 "
        "--log-every-steps 1 --image-size 64 --data-dir there --milestones 3 6 8.5 "
        "--coordinator-address localhost:1 --num-processes 2 --process-id 1"
    )
    config = parse_run(list(flags.split()))
    assert config == RECIPES["imagenet"]().replace(
        workdir=Path("here"),
        num_workers=16,
        batch_size_per_worker=64,
        num_epochs=9.5,
        num_steps=7,
        warmup="constant",
        warmup_epochs=0.5,
        base_learning_rate=0.2,
        accumulation_steps=2,
        model="resnet18",
        dtype="bfloat16",
        num_devices=4,
        log_every_steps=1,
        image_size=64,
        data_dir=Path("there"),
        milestones=(3, 6, 8.5),
        coordinator_address="localhost:1",
        num_processes=2,
        process_id=1,
    )


@pytest.mark.parametrize("args", [["--help"], ["digits", "--help"]])
def test_help_lists_the_recipes_or_the_flags(args: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        parse_run(args)
    assert not ending.value.code
    said = capsys.readouterr().out
    for word in RECIPES if args == ["--help"] else ["--num-workers", "--workdir", "--warmup"]:
        assert word in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--num-worker 3", ["--num-worker ", "did you mean --num-workers?"]),
        ("nope", ["nope", "digits", "imagenet"]),
        ("--model resnet51", ["resnet51", "--model", "resnet50"]),
        ("--dtype float16", ["float16", "--dtype", "bfloat16"]),
        ("--num-workers many", ["many", "--num-workers"]),
        ("--workdir", ["--workdir needs a value: --workdir PATH"]),
        ("--seeds --seed 1", ["--seeds needs a value: --seeds INT ..."]),
        ("--batch-size-per-worker 0", ["--batch-size-per-worker is 0", "at least 1"]),
        ("--coordinator-address localhost:1", ["--num-processes"]),
    ],
)
def test_wrong_flag_or_value_is_reported_in_one_line(args: str, words: list[str]):
    with pytest.raises(UsageError) as error:
        parse_run(args.split())
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 250
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        # tests/conftest.py sets up 8 devices
        ("--num-workers 12", ["--num-workers is 12", "8 × 1"]),
        ("--accumulation-steps 3", ["8 × 3"]),
        ("--num-workers 12 --num-devices 8", ["such as --num-workers 8"]),
        ("--num-workers 256", ["--num-workers is 256", "1437", "pass --num-workers 64"]),
        (
            "--batch-size-per-worker 1500",
            ["--num-workers 1 --batch-size-per-worker 1437 or less"],
        ),
        (
            "--num-epochs 4",
            ["--warmup-epochs is 5", "at most --num-epochs, 4", "such as --warmup-epochs 0.22"],
        ),
        ("--num-epochs 0.001", ["--warmup-epochs is 5"]),
        ("--num-epochs 0.001 --warmup none", ["--num-epochs must amount to 1", "got 0.001"]),
        ("--num-epochs 1e9", ["--num-epochs must amount to 1 to 2147483647 steps"]),
        ("--milestones 60 30", ["--milestones is 60 30", "as in 30 60"]),
        ("--milestones 2", ["--milestones begins with 2", "--warmup-epochs, 5"]),
        ("--milestones 30 30.01", ["--milestones must be at least one step apart"]),
        ("--base-learning-rate -1", ["--base-learning-rate is -1; it must be more than 0"]),
        (
            "--warmup gradual --base-batch-size 256",
            ["--warmup is gradual", "smaller than --base-batch-size, 256", "--warmup auto"],
        ),
        ("--optimizer lamb --momentum 0.8", ["--momentum is 0.8", "lamb has none"]),
        ("--init-from nowhere", ["--init-from nowhere does not exist"]),
        ("tfds", ["--dataset"]),
        ("imagenet", ["imagenet2012", "python -m train.prepare imagenet2012"]),
        ("--workdir /dev/null/run", ["--workdir", "/dev/null/run"]),
    ],
)
def test_impossible_run_ends_with_one_line_and_exit_code_2(
    args: str,
    words: list[str],
    digits_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main([*args.split(), "--data-dir", str(digits_dir)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("python -m train: ")
    for word in words:
        assert word in said.err
    assert not list(tmp_path.rglob("*.jsonl"))
