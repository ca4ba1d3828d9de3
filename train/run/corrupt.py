"""Corrupt images that a run has met: their list on disk, and how many are tolerated."""

import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.config import Config, JsonObject
from train.data.dataset import Dataset
from train.data.images import decode
from train.errors import DataError
from train.run.workdir import write_atomically
from train.step.examples import INTACT, NO_LABEL


class CorruptImages:
    """The corrupt images that a run has met, each once, listed in corrupt_images.jsonl.

    Every process knows all of them; process 0 writes. A resumed run forgets those that it met after
    the step it resumes from.

    Args:
        config: configuration of the run.
        dataset: the run's data set.
        step: completed updates of the restored state.
        path: path of the list. Default: none is written.
    """

    def __init__(
        self, config: Config, dataset: Dataset, step: int = 0, path: Path | None = None
    ) -> None:
        self._config, self._dataset, self._path = config, dataset, path
        self._lines: list[JsonObject] = []
        if path is not None and path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._lines = [line for line in lines if line["step"] <= step]
            self._write()

    def __len__(self) -> int:
        return len(self._lines)

    def add_from_training(self, step: int, corrupt: jax.Array) -> None:
        """Add the images that were replaced in one training minibatch. All processes must call it.

        Args:
            step: completed updates, including the one of this minibatch.
            corrupt: `Examples.corrupt` of the minibatch, on the devices.

        Raises:
            DataError: if there are more than `max_corrupt_images`.
        """
        indices = np.asarray(multihost_utils.process_allgather(corrupt, tiled=True))
        self._add(step, "train", indices[indices != INTACT].tolist())

    def add_from_evaluation(self, step: int, labels: np.ndarray) -> None:
        """Add the images that an evaluation omitted.

        Args:
            step: completed updates.
            labels: labels of all test images, as `predict` returns them.

        Raises:
            DataError: if there are more than `max_corrupt_images`.
        """
        split = self._dataset.evaluation_split
        self._add(step, split, np.flatnonzero(labels == NO_LABEL).tolist())

    def _add(self, step: int, split: str, indices: list[int]) -> None:
        known = {(line["split"], line["index"]) for line in self._lines}
        if new := [index for index in indices if (split, index) not in known]:
            self._lines += [{"step": step, **self._describe(split, index)} for index in new]
            self._write()
        allowed = self._config.machine.max_corrupt_images
        if indices and len(self) > allowed:
            last = self._lines[-1]
            name = "" if last["file_name"] is None else f" ({last['file_name']})"
            raise DataError(
                f"{self._dataset.name}, split '{last['split']}', image {last['index']}{name}: "
                f"{last['reason']}; corrupt images so far: {len(self)}, --max-corrupt-images "
                f"allows {allowed}{f'; {self._path} lists them' if self._path else ''}"
            )

    def _describe(self, split: str, index: int) -> JsonObject:
        dataset = self._dataset
        records = dataset.train if split == "train" else dataset.evaluation
        (record,) = records.__getitems__([index])
        name = record.get("file_name", record.get("id"))
        reason = "an image that could be decoded at a second attempt"
        try:
            decode(record["image"], self._config.experiment.num_channels)
        except ValueError as error:
            reason = str(error)
        return {
            "split": split,
            "index": index,
            "file_name": name.decode(errors="replace") if isinstance(name, bytes) else name,
            "reason": reason,
        }

    def _write(self) -> None:
        if self._path is not None and jax.process_index() == 0:
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))
