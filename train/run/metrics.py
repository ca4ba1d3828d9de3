"""Metrics of a run: metrics.jsonl, TensorBoard events and the score."""

import itertools
import json
import math
import os
import shutil
import statistics
import time
from pathlib import Path

import jax
from tensorboardX.event_file_writer import EventsWriter

# Protobuf makes these classes when they are imported.
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from train.config import JsonObject
from train.run.workdir import write_atomically
from train.timeline import Timeline

Record = JsonObject
"""One line of metrics.jsonl: `step` and `epoch` completed so far, and scalars named `train/...` and
`eval/...`. Errors are fractions. A loss that is not finite is None."""


def read_records(path: Path) -> list[Record]:
    """Read metrics.jsonl, without a last line that a kill cut off."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # text after the last newline is unfinished
    return [json.loads(line) for line in lines]


class MetricsLog:
    """The metrics of one run.

    Every process keeps the records; process 0 writes them. metrics.jsonl is authoritative:
    TensorBoard's events are rewritten from it whenever a run resumes, so a kill or a clock that was
    set back leaves neither a gap nor a second curve.

    Args:
        workdir: the run's workdir.
        step: completed updates of the restored state; later records are dropped.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        path = workdir / "metrics.jsonl"
        self.records = [record for record in read_records(path) if record["step"] <= step]
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = path.open("a")
        shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
        (workdir / "tensorboard").mkdir()
        # Not SummaryWriter: on a full disk its thread dies and the next write blocks forever.
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        self._started = time.time() - self.seconds
        for record in self.records:
            self._show(record)
        self._events.flush()

    @property
    def seconds(self) -> float:
        """Seconds of training up to the last record, over all resumes."""
        return self.records[-1].get("train/seconds", 0.0) if self.records else 0.0

    @property
    def errors(self) -> dict[int, float]:
        """Top-1 error of each evaluation, a fraction, by step."""
        return {
            record["step"]: record["eval/top1_error"]
            for record in self.records
            if "eval/top1_error" in record
        }

    def write(self, record: Record) -> None:
        """Append one record to metrics.jsonl and TensorBoard."""
        self.records.append(record)
        if not self._writes:
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        self._show(record)
        self._events.flush()

    def _show(self, record: Record) -> None:
        # Make TensorBoard's relative axis show training time, without the gaps between runs.
        seconds = self._started + record.get("train/seconds", 0.0)
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if "/" in name and value is not None
        ]
        self._events.write_event(
            Event(step=record["step"], wall_time=seconds, summary=Summary(value=values))
        )

    def sync(self) -> None:
        """Flush all records to disk, before the checkpoint that comes after them."""
        if self._writes:
            os.fsync(self._file.fileno())

    def is_evaluated(self, step: int) -> bool:
        """Whether the state after `step` updates has been evaluated."""
        return step in self.errors

    def close(self) -> None:
        """Flush everything to disk."""
        if self._writes:
            self._file.close()
            self._events.close()


def means(records: list[Record], name: str, bins_per_epoch: int = 1) -> list[tuple[float, float]]:
    """Mean of a metric over each epoch, or part of one, with the epoch of its last record.

    Single minibatches are noisy. Epoch 1 covers epochs above 0 up to and including 1, its last
    update.
    """
    known = [record for record in records if record.get(name) is not None]
    by_bin = itertools.groupby(known, key=lambda r: math.ceil(r["epoch"] * bins_per_epoch))
    groups = [list(group) for _, group in by_bin]
    return [(group[-1]["epoch"], statistics.mean(r[name] for r in group)) for group in groups]


def results(records: list[Record], timeline: Timeline) -> Record:
    """The results of a run for its summary: errors, loss, time and throughput.

    Args:
        records: records of the whole run; at least one of them has an evaluation.
        timeline: timeline of the run.

    Returns:
        A record with these entries. Errors are fractions.

        - `top1_error_median_last5`: median over the evaluations of the last five epochs (paper,
          section 5.1). An evaluation in the middle of an epoch counts only if it is the last one
          of a shortened run.
        - `num_epochs_in_median`: number of these evaluations, fewer than five in a short run.
        - `top1_error_last`, `top1_error_best`, `epoch_of_best`: the last evaluation and the best
          one, the newest of equals, as for the checkpoint that is kept.
        - `top5_error_last`: only with six classes or more.
        - `eval_loss_last`: mean cross-entropy of the last evaluation; None if it is not finite.
        - `seconds`: seconds of training, with evaluations, over all resumes.
        - `images_per_second`: median of the logged throughputs.
    """
    evaluations = [record for record in records if "eval/top1_error" in record]
    last = evaluations[-1]
    best = min(reversed(evaluations), key=lambda record: record["eval/top1_error"])
    at_ends = [
        record["eval/top1_error"]
        for record in evaluations
        if timeline.ends_epoch(record["step"]) or record is last
    ][-5:]
    found: Record = {
        "top1_error_median_last5": statistics.median(at_ends),
        "num_epochs_in_median": len(at_ends),
        "top1_error_last": last["eval/top1_error"],
        "top1_error_best": best["eval/top1_error"],
        "epoch_of_best": best["epoch"],
    }
    if "eval/top5_error" in last:
        found["top5_error_last"] = last["eval/top5_error"]
    return found | {
        "eval_loss_last": last.get("eval/loss"),
        "seconds": last.get("train/seconds", 0.0),
        "images_per_second": statistics.median(
            record["train/images_per_second"] for record in records
        ),
    }
