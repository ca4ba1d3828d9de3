"""Flags of other trainers and misspellings: one line with the flag that was meant."""

from typing import Any

import pytest

from train import evaluate, pod, prepare
from train.command_line import parse_options, parse_run
from train.config import Experiment, Machine, Output
from train.errors import UsageError
from train.run.flag_names import ELSEWHERE, NOT_NEEDED, explain_unknown
from train.run.flags import flags_of

FLAGS = [one.name for part in (Experiment, Machine, Output) for one in flags_of(part)]
OTHERS = ["--out", "--predictions", "--top", "--memory-bytes", "--held-out", "--overwrite"]


def refusal(args: str, options: Any = None) -> str:
    with pytest.raises(UsageError) as error:
        parse_options(options, args.split(), "prog") if options else parse_run(args.split())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("--lr", "--base-learning-rate"), ("--learning-rate", "--base-learning-rate"),
        ("--epochs", "--num-epochs"), ("--max-epochs", "--num-epochs"),
        ("--num_train_epochs", "--num-epochs"), ("--trainer.max_epochs", "--num-epochs"),
        ("--batch-size", "--batch-size-per-worker"), ("-b", "--batch-size-per-worker"),
        ("--per-device-train-batch-size", "--batch-size-per-worker"),
        ("--wd", "--weight-decay"), ("--output-dir", "--workdir"), ("--out", "--workdir"),
        ("--data-path", "--data-dir"), ("--train-dir", "--data-dir"), ("--arch", "--model"),
        ("-a", "--model"), ("--workers", "--num-reader-threads"), ("-j", "--num-reader-threads"),
        ("--gpus", "--num-devices"), ("--devices", "--num-devices"), ("--amp", "--dtype"),
        ("--fp16", "--dtype"), ("--bf16", "--dtype"), ("--img-size", "--image-size"),
        ("--pretrained", "--init-from"), ("--dist-url", "--coordinator-address"),
        ("--world-size", "--num-processes"), ("--rank", "--process-id"),
        ("--lr-steps", "--milestones"), ("--accum-iter", "--accumulation-steps"),
        ("--gradient-accumulation-steps", "--accumulation-steps"),
        ("--warmup-steps", "--warmup-epochs"), ("--opt", "--optimizer"),
    ],
)  # fmt: skip
def test_a_flag_of_another_trainer_is_translated(word: str, ours: str):
    for words in (f"{word} 1", f"imagenet {word}=1", f"--seed 1 {word}"):
        shown = word.replace("_", "-") if word.startswith("--") else word
        message = refusal(words)
        assert message.startswith(f"{shown} is not a flag of 'python -m train'; use {ours}")


@pytest.mark.parametrize(
    ("word", "reason"),
    [("--resume", "same command resumes"), ("--num-classes", "data set"), ("--device", "all ")],
)
def test_a_flag_that_is_not_needed_is_explained(word: str, reason: str):
    assert reason in refusal(f"{word} 1")


@pytest.mark.parametrize(
    ("word", "ours"),
    [("--num-worker", "--num-workers"), ("--sed", "--seed"), ("--Base-Batch", "--base-batch-size"),
     ("--weight-deacy", "--weight-decay"), ("--no-noise-scale", "--noise-scale")],
)  # fmt: skip
def test_a_misspelled_flag_gets_the_closest_one(word: str, ours: str):
    assert ours in refusal(f"{word} 1").partition(";")[2]


def test_an_unlike_flag_gets_the_command_that_lists_them():
    message = refusal("--xyzzy 1")
    assert message == (
        "--xyzzy is not a flag of 'python -m train'; 'python -m train --help' lists the flags"
    )


def test_the_suggestion_is_a_flag_of_the_command():
    assert refusal("--arch x", pod.Options).endswith("use --model")
    assert refusal("--output-dir x", pod.Options).endswith("use --out")
    assert refusal("--output-dir x", evaluate.Options).endswith("use --workdir")
    assert refusal("--output-dir x", prepare.Verify).endswith("use --data-dir")
    assert refusal("--lr x", evaluate.Options).endswith("'prog --help' lists the flags")
    assert refusal("--resume x", evaluate.Options).endswith("'prog --help' lists the flags")


def test_the_tables_name_existing_flags_and_each_foreign_flag_once():
    foreign = [name for names, _, _ in ELSEWHERE for name in names.split()]
    foreign += [name for names in NOT_NEEDED for name in names.split()]
    assert len(foreign) == len(set(foreign))
    for names, ours, _ in ELSEWHERE:
        assert set(ours.split()) <= {*FLAGS, *OTHERS}, names
    assert not {f"--{name}" for name in foreign} & set(FLAGS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("imagnet", "there is no recipe 'imagnet'; did you mean imagenet? The recipes are digits"),
        ("fashion_mnist", "there is no recipe 'fashion_mnist'; did you mean fashion-mnist?"),
        ("evaluate", "evaluate is a command of its own: python -m train.evaluate"),
        ("--seed 1 digits", "'digits' belongs to no flag; a recipe comes first"),
        ("--noise-scale yes", "--noise-scale takes no value; pass it without 'yes'"),
        ("--optimizer adam", "--optimizer is 'adam'; it must be sgd, lars or lamb"),
        ("--model resnet-50", "did you mean resnet50?"),
    ],
)
def test_a_wrong_word_is_explained(args: str, message: str):
    assert message in refusal(args)


def test_a_flag_with_line_breaks_stays_in_one_line():
    assert "\n" not in explain_unknown("--a\nb", FLAGS, "prog")
