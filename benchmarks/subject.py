"""A process that is measured in turns with others.

A shared machine's speed drifts by more than the differences to be measured. Subjects therefore take
turns in short rounds, and are compared by their ratios within a round.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A process that answers each line of its input with a line of JSON.

    Attributes:
        name: name of the subject in tables.
        process: the process. Its first answer, before any line of input, says that it is ready.
        log: the process's standard error.
    """

    name: str
    process: subprocess.Popen[str]
    log: IO[str]

    @classmethod
    def start(
        cls, name: str, module: str, flags: dict[str, Any], environment: dict[str, str]
    ) -> Subject:
        """Start `python -m MODULE` with these flags and additional environment variables."""
        command = [sys.executable, "-m", module]
        for flag, value in flags.items():
            command += [f"--{flag}", str(value)]
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (stop closes it)
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        return cls(name, process, log)

    def ask(self, number: int) -> None:
        """Send a line of input."""
        assert self.process.stdin
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            RuntimeError: if the process has ended; with the last line of its standard error.
        """
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print other lines
                return json.loads(line)
        self.log.seek(0)
        lines = self.log.read().strip().splitlines() or ["no output"]
        raise RuntimeError(f"{self.name} ended without an answer: {lines[-1]}")

    def turn(self, number: int) -> dict[str, Any]:
        """Send a line of input and wait for the answer."""
        self.ask(number)
        return self.read()

    def close(self) -> None:
        """Close the input, which ends the process."""
        assert self.process.stdin
        self.process.stdin.close()

    def stop(self) -> None:
        """End the process, and wait until it has ended."""
        self.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def answer(**values: Any) -> None:
    """Print an answer, in the process of a subject."""
    print(json.dumps(values), flush=True)


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
