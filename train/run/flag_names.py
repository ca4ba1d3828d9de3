"""Flags of other trainers and what they are called here, and the closest name for a misspelling."""

import difflib
from collections.abc import Iterable, Sequence

# Names in timm, torchvision, Keras, Hugging Face and Lightning: our flags, and what to know.
# A command suggests the first of our flags that it has.
ELSEWHERE: list[tuple[str, str, str]] = [
    ("lr learning-rate base-lr blr", "--base-learning-rate",
     "the learning rate for a minibatch of --base-batch-size"),
    ("epochs max-epochs num-train-epochs n-epochs", "--num-epochs", ""),
    ("max-steps steps total-steps", "--num-steps", ""),
    ("b batch-size train-batch-size per-device-train-batch-size batch bs",
     "--batch-size-per-worker", "a minibatch has --num-workers times as many images"),
    ("global-batch-size total-batch-size", "--num-workers",
     "a minibatch has --num-workers × --batch-size-per-worker images"),
    ("lr-steps lr-step-size decay-epochs decay-milestones step-size", "--milestones",
     "in epochs"),
    ("warmup-steps warmup-ratio lr-warmup-epochs num-warmup-steps", "--warmup-epochs", ""),
    ("lr-warmup-method warmup-type lr-scheduler lr-scheduler-type sched", "--warmup",
     "with --milestones it defines the schedule"),
    ("wd decay l2", "--weight-decay", ""),
    ("opt optim solver", "--optimizer", ""),
    ("arch a model-name model-name-or-path backbone net network", "--model", ""),
    ("img-size input-size image-resolution resolution train-crop-size crop-size size",
     "--image-size", ""),
    ("amp fp16 bf16 half mixed-precision precision use-amp", "--dtype", "such as bfloat16"),
    ("data-path data-root train-dir train-data-dir root dataset-dir", "--data-dir",
     "the folder of data sets prepared by python -m train.prepare"),
    ("dataset-name ds", "--dataset", ""),
    ("output-dir output out o log-dir save-dir default-root-dir exp-dir experiment",
     "--workdir --out --predictions --data-dir", ""),
    ("checkpoint ckpt checkpoint-path ckpt-path model-path", "--workdir --init-from --model", ""),
    ("pretrained weights finetune initial-checkpoint init-checkpoint", "--init-from --model",
     "the workdir of a trained run, or a .safetensors or .pth file"),
    ("freeze-bn freeze-norm bn-eval norm-eval", "--freeze-batch-stats", ""),
    ("freeze freeze-layers frozen-stages freeze-at trainable-layers", "--freeze-stages",
     "a number of stages, after the stem"),
    ("head-lr lr-head head-lr-mult", "--head-learning-rate-multiplier", ""),
    ("topk top-k num-predictions k", "--top", ""),
    ("workers j num-data-workers dataloader-num-workers", "--num-reader-threads",
     "--num-workers is the paper's k"),
    ("gpus devices num-gpus n-gpus nproc-per-node", "--num-devices",
     "for simulated CPU devices; all GPUs are used, or those in CUDA_VISIBLE_DEVICES"),
    ("accum-iter grad-accum-steps gradient-accumulation-steps accumulate-grad-batches accum-steps",
     "--accumulation-steps", ""),
    ("dist-url master-addr init-method master-port", "--coordinator-address", "host:port"),
    ("world-size nodes nnodes num-nodes", "--num-processes", ""),
    ("rank node-rank machine-rank local-rank", "--process-id", ""),
    ("print-freq log-interval logging-steps log-every-n-steps log-freq", "--log-every-steps", ""),
    ("save-steps save-freq save-every", "--checkpoint-every-steps", ""),
    ("save-total-limit checkpoint-hist", "--keep-checkpoints", ""),
    ("aa auto-augment augment transform", "--augmentation", ""),
    ("random-seed", "--seed", ""),
    ("memory max-memory", "--memory-bytes", ""),
    ("test-size val-split validation-split val-size", "--held-out", "a fraction"),
    ("force", "--overwrite", ""),
]  # fmt: skip

# Names without a flag here, and why.
NOT_NEEDED = {
    "resume auto-resume resume-from-checkpoint": "the same command resumes its --workdir",
    "num-classes nb-classes": "the data set determines the number of classes",
    "evaluate test-only eval": "python -m train.evaluate --workdir DIR evaluates a run",
    "device cuda no-cuda accelerator": "all devices that JAX finds are used; JAX_PLATFORMS=cpu "
    "selects the CPU",
    "lr-gamma gamma decay-rate": "the learning rate is divided by 10 at each of --milestones",
    "nesterov": "SGD always uses it",
    "sync-bn": "batch normalization takes its statistics over --batch-size-per-worker images",
    "label-smoothing smoothing mixup cutmix ema model-ema": "the paper does not use it",
}  # fmt: skip


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that a misspelled word most resembles; None if none does."""
    given = list(names)
    word = word.lower().replace("_", "-")
    close = difflib.get_close_matches(word, given, n=1)
    return close[0] if close else None


def explain_unknown(word: str, known: Sequence[str], prog: str) -> str:
    """One line about a flag that a command does not have, with the one that was meant.

    Args:
        word: the flag, such as --lr.
        known: flags of the command.
        prog: name of the command.
    """
    name = word.lstrip("-").rpartition(".")[2].replace("_", "-").lower()  # Lightning: --model.lr
    advice = _advice(name, known)
    if advice is None and (close := closest(f"--{name}", known)):
        advice = f"did you mean {close}?"
    if advice is None and name.startswith("no-") and f"--{name[3:]}" in known:
        advice = f"leave out --{name[3:]} instead"
    shown = word if word.isprintable() else repr(word)
    advice = advice or f"'{prog} --help' lists the flags"
    return f"{shown} is not a flag of '{prog}'; {advice}"


def _advice(name: str, known: Sequence[str]) -> str | None:
    for names, ours, note in ELSEWHERE:
        if name in names.split():
            for flag in ours.split():
                if flag in known and flag != f"--{name}":
                    return f"use {flag}" + (f" ({note})" if note else "")
    for names, reason in NOT_NEEDED.items():
        if name in names.split() and "--base-learning-rate" in known:  # a command that trains
            return f"it is not needed: {reason}"
    return None
