"""Images that cannot be decoded: which they are, where they are listed, and how many may be."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.config import Config, DataError
from train.data.images import decode
from train.data.minibatches import NO_LABEL, SOUND, Dataset
from train.run.workdir import write_whole


class CorruptImages:
    """The images that a run has met and cannot decode, each once, listed in corrupt_images.jsonl.

    Every process knows all of them; process 0 alone writes. A run that goes on after `step` updates
    forgets those that it met later.

    Args:
        config: of the run.
        dataset: of the run.
        step: updates made by the state from which the run goes on.
        path: of the list; none is written if left out.
    """

    def __init__(
        self, config: Config, dataset: Dataset, step: int = 0, path: Path | None = None
    ) -> None:
        self._config, self._dataset, self._path = config, dataset, path
        self._lines: list[dict[str, Any]] = []
        if path is not None and path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._lines = [line for line in lines if line["step"] <= step]
            self._write()

    def __len__(self) -> int:
        return len(self._lines)

    def meet_in_training(self, step: int, corrupt: jax.Array) -> None:
        """Take note of the images in whose place others stood in one minibatch.

        To be called by all processes.

        Args:
            step: updates made, that of this minibatch included.
            corrupt: `Examples.corrupt` of the minibatch, on the devices.

        Raises:
            DataError: if there are more than `config.max_corrupt_images`.
        """
        indices = np.asarray(multihost_utils.process_allgather(corrupt, tiled=True))
        self._meet(step, "train", indices[indices != SOUND].tolist())

    def meet_in_evaluation(self, step: int, labels: np.ndarray) -> None:
        """Take note of the images that an evaluation left out.

        Args:
            step: likewise.
            labels: of all test images, as `evaluation.predict` returns them.

        Raises:
            DataError: likewise.
        """
        self._meet(
            step, self._dataset.evaluation_split, np.flatnonzero(labels == NO_LABEL).tolist()
        )

    def _meet(self, step: int, split: str, indices: list[int]) -> None:
        known = {(line["split"], line["index"]) for line in self._lines}
        if new := [index for index in indices if (split, index) not in known]:
            self._lines += [{"step": step, **self._describe(split, index)} for index in new]
            self._write()
        allowed = self._config.max_corrupt_images
        if indices and len(self) > allowed:
            last = self._lines[-1]
            name = "" if last["file_name"] is None else f" ({last['file_name']})"
            raise DataError(
                f"{self._dataset.name}, split '{last['split']}', image {last['index']}{name}: "
                f"{last['reason']}; that makes {len(self)} where --max-corrupt-images allows "
                f"{allowed}{f'; {self._path} lists all' if self._path else ''}"
            )

    def _describe(self, split: str, index: int) -> dict[str, Any]:
        dataset = self._dataset
        records = dataset.train if split == "train" else dataset.evaluation
        (record,) = records.__getitems__([index])
        name = record.get("file_name", record.get("id"))
        reason = "an image that could be decoded at a second attempt"
        try:
            decode(record["image"], num_channels=len(self._config.mean))
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
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in self._lines))
