"""Work in processes of its own: a training that crashes, leaks or is out of memory takes nothing else with it.

All of them are forked from one clean server process that has imported the suite once, since the import takes longer
than a small training; the server itself never computes, so nothing that does not survive a fork is in it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError

# Between looks whether there is an answer, since not all that interrupts a process also ends its waiting.
LOOK_SECONDS = 0.2


class Machine:
    """This machine, as `cluster.Cluster` is several.

    Args:
        jobs: How many trainings at a time.
        threads: Of each; null shares the processors among them, and leaves all to a single one.

    Attributes:
        most: How many trainings are begun before one has ended.
        threads: Of each; null for torch's own choice.
    """

    def __init__(self, jobs: int, threads: int | None = None) -> None:
        self.most: float = jobs
        self.threads = threads or (max(1, cores() // jobs) if jobs > 1 else None)

    def check(self, name: str, config: dict[str, Any]) -> None:
        """Whether there is room for a training: here always."""

    def at_a_time(self, config: dict[str, Any]) -> int:
        """How many trainings of a config share what there is."""
        return int(self.most)

    def start(
        self, function: Callable[..., Any], *arguments: Any, log: Path, config: dict[str, Any], name: str
    ) -> BaseProcess:
        """As `start`, for the training of a name and a config."""
        return start(function, *arguments, log=log)

    def call(self, function: Callable[..., Any], *arguments: Any, log: Path, config: dict[str, Any], name: str) -> Any:
        """As `call`, for the training of a name and a config."""
        return call(function, *arguments, log=log)

    def wait(self, processes: Sequence[BaseProcess]) -> list[BaseProcess]:
        """Those that have ended, of which there is at least one."""
        wait([process.sentinel for process in processes])
        return [process for process in processes if process.exitcode is not None]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(function: Callable[..., Any], *arguments: Any, log: Path | None = None) -> BaseProcess:
    """Start a function in a process of its own.

    Args:
        function: At the top of a module.
        arguments: Its arguments, as plain values.
        log: File that takes what the process prints; null lets it print.

    Returns:
        The process, started.
    """
    process = context().Process(target=_run, args=(function, arguments, dict(os.environ), log and str(log)))
    process.start()
    return process


def call(function: Callable[..., Any], *arguments: Any, log: Path | None = None) -> Any:
    """As `start`, to its end.

    Returns:
        What the function returned.

    Raises:
        UserError: If the function raised one.
        RuntimeError: If it broke otherwise.
    """
    receiver, sender = context().Pipe(duplex=False)
    process = start(_answer, sender, function, arguments, log=log)
    sender.close()
    try:
        while not receiver.poll(LOOK_SECONDS):
            pass
        kind, value = receiver.recv()
    except EOFError as error:
        process.join()
        where = f"; what it printed is in {log}" if log else ""
        raise RuntimeError(f"A process of the study ended with {describe_exit(process.exitcode)}{where}.") from error
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        process.join()
    if kind == "user error":
        raise UserError(value)
    if kind == "error":
        raise RuntimeError(value)
    return value


def context() -> Any:
    """Where the system has one, a server that forks; else a new interpreter each time."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["lit_pretrain.studies.preloaded"])
    return forkserver


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name} (most often the memory was used up)" if name == "SIGKILL" else name
    return f"exit status {code}"


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple) -> None:
    """Send what a function returns or raises."""
    try:
        answer = ("value", function(*arguments))
    except UserError as error:
        answer = ("user error", " ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        answer = ("error", f"{type(error).__name__}: {error}")
    sender.send(answer)
    sender.close()


def _run(function: Callable[..., Any], arguments: tuple, environment: dict[str, str], log: str | None) -> None:
    """Prepare a process, and run a function in it."""
    # The server has the environment of when it was started.
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "setpgrp"):
        # A terminal's Ctrl-C is for the study, which passes it on.
        os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if log is not None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # Not those of whoever holds these names, such as a test that captures them.
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    function(*arguments)


def _end_with_parent() -> None:
    """A study that was killed must not leave trainings behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
