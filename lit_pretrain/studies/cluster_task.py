"""What a task of Ray does on its machine: a process as on one machine, to its end, with the study's own files."""

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lit_pretrain import __version__
from lit_pretrain.studies import processes

LOOK_SECONDS = 0.2
# What one machine has just made, another may see a little later on a file system that they share.
SHARED_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """Where a study is done.

    Attributes:
        directory: The current one, which relative paths start from.
        runs_directory: Of the study and its trainings.
        environment: Variables that are the same on all machines.
        version: The suite's.
    """

    directory: str
    runs_directory: str
    environment: dict[str, str] = field(default_factory=dict)
    version: str = __version__


@dataclass(frozen=True)
class Answer:
    """What came of a task.

    Attributes:
        machine: Its name.
        seconds: That it took, without waiting for a machine.
        code: Exit code of its process.
        value: What a function returned.
        refused: Why nothing was done; a sentence.
        broken: What a function raised, other than a refusal.
    """

    machine: str
    seconds: float = 0.0
    code: int = 0
    value: Any = None
    refused: str = ""
    broken: str = ""


def look(place: Place) -> Answer:
    """Whether a study can be done on this machine."""
    return Answer(socket.gethostname(), refused=enter(place))


def train(place: Place, function: Callable[..., Any], arguments: tuple, log: str) -> Answer:
    """A function in a process of its own, which is stopped in order if the task is."""
    began = time.monotonic()
    if refused := enter(place):
        return Answer(socket.gethostname(), refused=refused)
    process = processes.start(function, *arguments, log=Path(log))
    try:
        while process.exitcode is None:
            # Ray's signals reach a process that works, and not one that waits.
            process.join(LOOK_SECONDS)
    except BaseException:
        stop(process)
        raise
    return Answer(socket.gethostname(), time.monotonic() - began, process.exitcode)


def stop(process: BaseProcess) -> None:
    """Let a process finish its step and save; else this one would wait for it without an end."""
    process.terminate()
    process.join()


def call(place: Place, function: Callable[..., Any], arguments: tuple, log: str) -> Answer:
    """The same, for what it returns."""
    from lit_pretrain.errors import UserError

    began = time.monotonic()
    if refused := enter(place):
        return Answer(socket.gethostname(), refused=refused)
    try:
        value = processes.call(function, *arguments, log=Path(log))
    except UserError as error:
        return Answer(socket.gethostname(), refused=str(error))
    except RuntimeError as error:
        return Answer(socket.gethostname(), broken=str(error))
    return Answer(socket.gethostname(), time.monotonic() - began, value=value)


def enter(place: Place) -> str:
    """Be where the study is done; a sentence if that cannot be."""
    machine = socket.gethostname()
    if place.version != __version__:
        return f"The machine {machine} has lit_pretrain {__version__}, and this one {place.version}: install the same."
    for directory in (place.directory, place.runs_directory):
        deadline = time.monotonic() + SHARED_SECONDS
        while not os.path.isdir(directory):
            if time.monotonic() > deadline:
                return (
                    f"The machine {machine} does not see {directory}: start from, and keep LIT_PRETRAIN_RUNS in, a "
                    "directory that all machines of the cluster share."
                )
            time.sleep(LOOK_SECONDS)
    os.chdir(place.directory)
    # The job that Ray was started by is not that of a training, which Lightning would take for a part of it.
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]
    os.environ.update(place.environment)
    # Each process would run Ray's own script once more, as the program that it comes from.
    vars(sys.modules["__main__"]).pop("__file__", None)
    return ""
