"""Joining the other processes of a run, with a time limit and errors in one line.

`jax.distributed.initialize` blocks in C++. If its own time limit passes, or the port of process 0
is taken, it ends the process with a C++ stack trace. So it runs in a thread, with a longer time
limit than ours, and the main thread waits, which Ctrl-C interrupts.
"""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from train.cluster.launchers import Launch, find_launch
from train.config import Machine
from train.errors import RunError, UsageError
from train.run import workarounds

# If a process dies or fails, JAX ends the others and reports which one it was. With JAX's default
# timeouts, this would take minutes.
TIMEOUTS: dict[str, Any] = {"heartbeat_timeout_seconds": 20, "shutdown_timeout_seconds": 30}

SECONDS_UNTIL_REPORT = 5.0  # other processes than 0 stay silent if they join sooner
SECONDS_BETWEEN_PROBES = 1.0
SECONDS_TO_ANSWER = 5.0  # JAX's server answers in milliseconds

# How HTTP/2 (RFC 9113, section 3.4), and so gRPC, starts: a fixed text and an empty SETTINGS frame.
# The server's answer starts with a SETTINGS frame too: 3 bytes of length and the type, 4.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4

_joining = threading.Event()
"""Set while this process waits for others, or they may wait for its devices."""


def join_processes(machine: Machine) -> None:
    """Join the other processes of this run, if any, and initialize JAX.

    Args:
        machine: `coordinator_address`, `num_processes` and `process_id` say what to join; without
            them the launcher's environment variables do. `num_processes` 1 joins none.

    Raises:
        UsageError: if the other processes cannot be found, or a platform is missing.
        RunError: if they have not joined after `coordinator_timeout_seconds`.
    """
    if machine.coordinator_address is not None:
        _join_address(machine, machine.coordinator_address)
    elif machine.num_processes is None:
        launch = find_launch(os.environ, getattr(jax.config, "jax_platforms", None) or "")
        if launch is not None:
            _join_launch(launch, machine.coordinator_timeout_seconds)
    check_platforms()
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        workarounds.silence_gloo()
    _joining.clear()


def check_platforms() -> None:
    """Check that JAX can use the platforms that are asked for, such as `cuda`. Initializes JAX.

    Raises:
        UsageError: if this machine lacks one.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda on a machine without one
        if not (wanted := getattr(jax.config, "jax_platforms", None)):
            raise
        raise UsageError(
            f"JAX_PLATFORMS is {wanted}, but JAX finds only {_platforms()} on this machine; unset "
            "JAX_PLATFORMS, or install JAX for that platform, such as with pip install "
            "'jax[cuda13]'"
        ) from error


def _platforms() -> str:
    """The platforms of this machine, found in another process: this one may have joined others."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    code = "import jax; print(*sorted({'cpu', jax.default_backend()}), sep=' and ')"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "none"


def is_joining() -> bool:
    """Whether this process cannot tell the others that it ends, so that no exit may wait for it."""
    return _joining.is_set()


def _join_address(machine: Machine, address: str) -> None:
    host, _, port = address.rpartition(":")
    if machine.process_id == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port_is_free(int(port))

    def call() -> None:
        jax.distributed.initialize(
            address,
            machine.num_processes,
            machine.process_id,
            cluster_detection_method="deactivate",
            initialization_timeout=_longer(machine.coordinator_timeout_seconds),
            **TIMEOUTS,
        )

    processes = f"{machine.num_processes} processes at {address}"
    is_checked = machine.process_id == 0

    def check() -> None:
        nonlocal is_checked
        is_checked = is_checked or _probe(host.strip("[]"), int(port)) == ""

    try:
        _in_time(call, check, processes, machine.process_id, machine.coordinator_timeout_seconds)
    except TimeoutError:
        reason = (
            "some of them have not started"
            if is_checked
            else f"process 0 does not answer: {_probe(host.strip('[]'), int(port))}"
        )
        raise RunError(
            f"waited {machine.coordinator_timeout_seconds} s for {processes}: {reason}; start all "
            f"{machine.num_processes} processes with the same --coordinator-address, which every "
            f"host must reach{_proxies()}"
        ) from None
    except UsageError:
        raise
    except Exception as error:  # the errors of JAX's server have no common type
        raise UsageError(f"cannot join {processes}: {_one_line(error)}") from error


def _join_launch(launch: Launch, seconds: int) -> None:
    problem = (
        f"{launch.launcher} launched this process as one of several, but JAX cannot find the others"
    )
    alone = "--num-processes 1 trains in this process alone"
    remedy = f"pass --coordinator-address, --num-processes and --process-id; {alone}"
    if launch.package is not None and importlib.util.find_spec(launch.package) is None:
        raise UsageError(f"{problem} without the package {launch.package}: install it, or {remedy}")

    def call() -> None:
        jax.distributed.initialize(
            num_processes=launch.num_processes,
            # None is JAX's default, one GPU per process; an empty list means all GPUs.
            local_device_ids=None if launch.one_gpu else [],
            cluster_detection_method=launch.method,
            initialization_timeout=_longer(seconds),
            **TIMEOUTS,
        )

    reported = f" ({launch.variable}; {alone})" if launch.variable else ""
    processes = f"{launch.num_processes or 'all'} processes of {launch.launcher}{reported}"
    try:
        _in_time(call, lambda: None, processes, launch.process_id, seconds)
    except TimeoutError:
        raise RunError(
            f"waited {seconds} s for {processes}: one of them has not started or does not reach "
            f"process 0{_proxies()}; docs/clusters.md has a list of causes"
        ) from None
    except Exception as error:  # each method raises errors of its own
        if launch.launcher == "TPU" and isinstance(error, ValueError):
            return  # a TPU machine outside a pod
        # JAX reads the launcher's variables from `os.environ`.
        reason = f"{error.args[0]} is not set" if isinstance(error, KeyError) else _one_line(error)
        raise UsageError(f"{problem}: {reason}; {remedy}") from error


def _in_time(
    call: Callable[[], None],
    check: Callable[[], None],
    processes: str,
    process_id: int | None,
    seconds: int,
) -> None:
    """Run a function in a thread that is left behind if it takes too long.

    Args:
        call: the function.
        check: called about once a second until then; it raises if waiting is of no use.
        processes: what the function waits for.
        process_id: index of this process. Process 0 reports at once what it waits for.
        seconds: time limit.

    Raises:
        TimeoutError: after the time limit.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            with workarounds.quiet_cluster_detection():
                call()
        except Exception as error:
            errors.append(error)

    _joining.set()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started, is_reported = time.monotonic(), False
    while thread.is_alive() and (waited := time.monotonic() - started) < seconds:
        if not is_reported and (process_id in (0, None) or waited >= SECONDS_UNTIL_REPORT):
            is_reported = True
            print(
                f"waiting at most {seconds} s (--coordinator-timeout-seconds) for {processes}",
                file=sys.stderr,
                flush=True,
            )
        thread.join(min(SECONDS_BETWEEN_PROBES, seconds - waited))
        if thread.is_alive():
            check()
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError


def _longer(seconds: int) -> int:
    """JAX's own time limit, which must not pass before ours."""
    return seconds + 3600


def _check_port_is_free(port: int) -> None:
    # gRPC shares a port with any other program that allows it, so JAX may not notice.
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        raise UsageError(
            f"--coordinator-address: port {port} cannot be used: "
            f"{os.strerror(error.errno or 0)}; choose another port for all processes"
        ) from None


def _probe(host: str, port: int) -> str:
    """The reason why process 0 does not answer; empty if it does.

    Raises:
        UsageError: if another program answers.
    """
    try:
        connection = socket.create_connection((host, port), SECONDS_TO_ANSWER)
    except OSError as error:  # process 0 may start later, and its host may get its name later
        return f"{error.strerror or error}"
    with connection:
        answer = b""
        with contextlib.suppress(OSError):
            connection.sendall(PREFACE)
            while len(answer) < 4 and (part := connection.recv(4 - len(answer))):
                answer += part
    if answer[3:] != bytes([SETTINGS]):
        raise UsageError(
            f"--coordinator-address: another program uses port {port} of {host}; choose another "
            "port for all processes"
        )
    return ""


def _proxies() -> str:
    names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")]
    return f"; unset {' and '.join(names)}, which can divert the connection" if names else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
