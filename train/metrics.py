"""What a run writes down: metrics.jsonl, TensorBoard events and the summary."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from train.workdir import write_whole

Record = dict[str, Any]
"""One line of metrics.jsonl: `step`, the updates made so far, `epoch`, the same in epochs, and
scalars named `train/...` and `eval/...`; errors are fractions."""


def read_records(path: Path) -> list[Record]:
    """Read metrics.jsonl; a last line that a kill left unfinished is no record."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline is unfinished
    return [json.loads(line) for line in lines]


class MetricsLog:
    """The metrics of one run, going on after `step` updates; later records are forgotten.

    Every process keeps the records; process 0 alone writes them.

    Args:
        workdir: of the run.
        step: updates made by the state from which the run goes on.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        path = workdir / "metrics.jsonl"
        self.records = [record for record in read_records(path) if record["step"] <= step]
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        write_whole(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = path.open("a")
        # Flushed often: what a kill keeps from the disk could not be written again after a resume.
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=1
        )

    def write(self, record: Record) -> None:
        """Append one record, whole, to metrics.jsonl and TensorBoard."""
        self.records.append(record)
        if not self._writes:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if "/" in name:
                self._tensorboard.add_scalar(name, value, record["step"])

    def is_evaluated(self, step: int) -> bool:
        """Whether the state after `step` updates has been evaluated."""
        return any(r["step"] == step and "eval/top1_error" in r for r in self.records)

    def close(self) -> None:
        """Flush everything to disk."""
        if self._writes:
            self._file.close()
            self._tensorboard.close()


def top1_error_median_last5(records: list[Record], steps_per_epoch: int) -> float | None:
    """Median top-1 error of the last five epochs' evaluations, a fraction (paper, section 5.1).

    Of evaluations between the ends of epochs only a last one counts, where a run was cut short.
    """
    evaluations = [record for record in records if "eval/top1_error" in record]
    at_ends = [
        record["eval/top1_error"]
        for record in evaluations
        if record["step"] % steps_per_epoch == 0 or record is evaluations[-1]
    ]
    return statistics.median(at_ends[-5:]) if at_ends else None
