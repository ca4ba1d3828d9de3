"""Tests of stopping by signals, with real signals sent to subprocesses."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.cluster.stop import StopOnSignal

REPOSITORY = Path(__file__).parents[3]

# Prints `requested` before and after the signal, and leaves the context when told to.
WAIT = """
import signal, sys, time
from train.cluster.stop import StopOnSignal

before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
with StopOnSignal() as stop:
    print(stop.requested, flush=True)
    for _ in range(6000):
        if stop.requested:
            break
        time.sleep(0.01)
    print(stop.requested, flush=True)
    if sys.stdin.readline() == "leave\\n":
        pass
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
print("left", flush=True)
time.sleep(60)
"""


@contextmanager
def waiting() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        try:
            assert hear(run) == "False"
            yield run
        finally:
            run.kill()


def hear(run: "subprocess.Popen[str]") -> str:
    assert run.stdout is not None
    return run.stdout.readline().strip()


def say(run: "subprocess.Popen[str]", text: str) -> None:
    assert run.stdin is not None
    run.stdin.write(text + "\n")
    run.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_a_stop_and_the_process_continues(number: signal.Signals):
    with waiting() as run:
        os.kill(run.pid, number)
        assert hear(run) == "True"
        assert run.poll() is None
        say(run, "leave")
        assert hear(run) == "left"
        run.kill()
        assert run.stderr is not None
        assert "stopping after this step" in run.stderr.read()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_later_interrupt_kills_the_process(first: signal.Signals):
    with waiting() as run:
        os.kill(run.pid, first)
        assert hear(run) == "True"
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(timeout=120) == -signal.SIGINT


def test_a_second_sigterm_does_not_interrupt_the_save():
    """Clusters send SIGTERM more than once."""
    with waiting() as run:
        os.kill(run.pid, signal.SIGTERM)
        assert hear(run) == "True"
        os.kill(run.pid, signal.SIGTERM)
        say(run, "leave")
        assert hear(run) == "left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_handlers_are_restored_at_the_end(number: signal.Signals):
    with waiting() as run:
        os.kill(run.pid, signal.SIGTERM)
        assert hear(run) == "True"
        say(run, "leave")
        assert hear(run) == "left"
        os.kill(run.pid, number)
        assert run.wait(timeout=120) == -number


def test_the_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopOnSignal():
        raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


PREEMPTED = """
import os, signal, socket, sys, time
import jax

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
jax.distributed.initialize(address, 1, 0)
from train.cluster.stop import StopOnSignal

with StopOnSignal() as stop:
    print(stop.reached(1), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    step = 1
    for _ in range(6000):
        step += 1
        if stop.reached(step):
            break
        time.sleep(0.01)
    print(stop.reached(step), stop.requested, flush=True)
"""


def test_a_preemption_notice_is_left_to_jax_in_a_distributed_run():
    """JAX announces it to all processes, with the step after which they stop."""
    run = subprocess.run(
        [sys.executable, "-c", PREEMPTED], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert run.stdout.split() == ["False", "True", "False"], run.stderr


def test_a_signal_stops_at_any_step():
    with StopOnSignal() as stop:
        assert not stop.reached(7)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(8)


TOLD_BEFORE_THE_FIRST_STEP = (
    PREEMPTED[: PREEMPTED.index("    print")]
    + """    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # until JAX has noticed
    for step in range(101, 6000):
        if stop.reached(step):
            break
        time.sleep(0.01)
    else:
        step = "never"
    print(step, flush=True)
"""
)


def test_a_preemption_notice_before_the_first_step_of_a_resumed_run_is_not_lost():
    run = subprocess.run(
        [sys.executable, "-c", TOLD_BEFORE_THE_FIRST_STEP],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().isdecimal(), run.stdout + run.stderr
