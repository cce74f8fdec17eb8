"""Processes of their own for tests, forked from one that has imported everything: each saves the seconds of importing.

That one has started no threads, so that its forks, unlike those of a process with torch's threads, do not stand still.
It is itself a fork of the process that runs the tests, made before a test has started any.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import io
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from process_memory import MUCH, check_peak, collect, give_back

from lit_pretrain.__main__ import main
from lit_pretrain.cli import lightning_cli

IMPORTED = [
    "lit_pretrain.cli.lightning_cli",
    "mlflow.store.tracking.sqlalchemy_store",
    "ready_database",
    "ready_process",
    "text_corpus",
    "toy_training",
    # Last, since it sets aside all that there is by then.
    "lit_pretrain.studies.preloaded",
]
# How `multiprocessing` starts its server.
_spawn = util.spawnv_passfds


def children() -> ForkServerContext:
    """Makes processes and queues as `multiprocessing` does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def start_server() -> None:
    """Fork the process that all are forked from; from then on those of the suite's own commands are forked from it too.

    Else it would be started for the first test that needs one, and import once more all that this one has imported.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    for name in IMPORTED:
        importlib.import_module(name)
    children()
    resource_tracker.ensure_running()
    util.spawnv_passfds = _fork
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = _spawn


def _fork(path: bytes, arguments: list[str], kept: list[int]) -> int:
    # As `multiprocessing` starts `python -c PROGRAM`, which keeps the descriptors that are given and no others.
    if process := os.fork():
        return process
    try:
        # This is within `ensure_running`: its lock is held, for good in whatever is forked from here, where a command
        # that starts processes of its own would wait for it.
        forkserver._forkserver.__init__()
        util.spawnv_passfds = _spawn
        faulthandler.disable()
        # Python takes the end 0 of a range for no end.
        first = 3
        for descriptor in sorted(kept):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        # Those of this process are what pytest shows of a failed test.
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        exec(arguments[-1], {})
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


class Command:
    """`python -m lit_pretrain ARGUMENTS` in a process forked as above, with what `subprocess.Popen` has of one.

    Args:
        arguments: After `lit_pretrain`.
        environment: All variables of the process.
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._files = [Path(self._directory.name) / name for name in ("output", "errors")]
        # Its other end is held by the process and by whatever it has forked.
        self._alive, held = children().Pipe(duplex=False)
        work = (arguments, environment, os.getcwd(), self._files, held)
        self._process = children().Process(target=_be_command, args=work)
        self._process.start()
        held.close()
        self.pid, self.kill, self.wait = self._process.pid, self._process.kill, self._process.join

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the negative number of the signal that has ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status, or null while it runs."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it has written to its output and its errors, once it and all that it has forked have ended."""
        assert self._alive.poll(timeout), self._files[1].read_text()
        self._process.join(timeout)
        return tuple(path.read_text() for path in self._files)


def output_of(*arguments: str) -> str:
    """What `python -m lit_pretrain ARGUMENTS` prints in a process of its own, whose memory this one does not keep.

    Raises:
        AssertionError: If it ends with another status than 0.
    """
    command = Command(*arguments, **os.environ)
    output, errors = command.communicate(timeout=240)
    assert command.returncode == 0, errors
    return output


def _be_command(
    arguments: tuple[str, ...], environment: dict[str, str], directory: str, files: list[Path], held: Connection
) -> None:
    # The server that this is forked from has the variables of whichever test has started it.
    os.environ.clear()
    os.environ |= environment
    os.chdir(directory)
    # And its way to start processes, which would be that of the loaders' workers.
    multiprocessing.set_start_method(None, force=True)
    for number, path in enumerate(files, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    torch.set_num_threads(1)
    status = main(list(arguments))
    check_peak()
    sys.exit(status)


class Commands:
    """A process forked as above that runs one command after another: what they leave in memory ends with it."""

    def __init__(self) -> None:
        self._connection, others = children().Pipe()
        self._process = children().Process(target=_run_commands, args=(others, self._connection))
        self._process.start()
        others.close()

    def __call__(self, *arguments: str) -> int:
        """The exit status of `python -m lit_pretrain ARGUMENTS`, with this process's variables and directory.

        Raises:
            EOFError: If the process has ended.
        """
        self._connection.send((arguments, dict(os.environ), os.getcwd()))
        status, shown = self._connection.recv()
        # For whoever reads of a failure.
        print(shown)
        return status

    def close(self) -> None:
        """End it.

        Raises:
            AssertionError: If it has needed too much memory.
        """
        self._connection.close()
        self._process.join(timeout=60)
        assert self._process.exitcode == 0


def _run_commands(connection: Connection, others: Connection) -> None:
    others.close()
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    # It runs as many trainings as a process of tests.
    lightning_cli.keep_memory = lambda: False
    give_back()
    with contextlib.suppress(EOFError):
        while True:
            arguments, environment, directory = connection.recv()
            os.environ.clear()
            os.environ |= environment
            os.chdir(directory)
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
                status = main(list(arguments))
            connection.send((status, shown.getvalue()))
            collect(beyond=MUCH)
    check_peak()


def in_own_process(work: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in a process forked as above, whose memory this one does not keep.

    Raises:
        AssertionError: If it has raised; its traceback is among this process's errors.
    """
    process = children().Process(target=_be_alone, args=(work, arguments))
    process.start()
    process.join(timeout=240)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()


def _be_alone(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    work(*arguments)
    check_peak()


def both_ranks(work: Callable[[Path], Any], directory: Path) -> list[Any]:
    """What two processes that train together by gloo come to.

    Args:
        work: A function of a module; what it returns of `directory` is saved there and read again.
        directory: For both.

    Returns:
        The first process's result and the second's.

    Raises:
        AssertionError: If one of them has ended otherwise; with what it has raised, which comes first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [children().Process(target=_be_rank, args=(work, directory, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=480)
        statuses = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    # The one that has failed first: the other one's failure is that nobody answers it.
    raised = sorted(directory.glob("rank-*.error"), key=lambda file: file.stat().st_mtime_ns)
    reasons = [f"{file.stem}: {file.read_text().splitlines()[-1]}" for file in raised]
    texts = "".join(f"\n{file.read_text()}" for file in raised)
    assert statuses == [0, 0], f"exit statuses {statuses}; {'; '.join(reasons)}{texts}"
    return [torch.load(directory / f"rank-{rank}.pt") for rank in range(2)]


def _be_rank(work: Callable[[Path], Any], directory: Path, rank: int, port: int) -> None:
    # The server that this is forked from has the seed of whichever test has started it.
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    # A process that ends by a signal says where it was.
    faulthandler.enable()
    try:
        torch.save(work(directory), directory / f"rank-{rank}.pt")
        check_peak()
    except BaseException:
        (directory / f"rank-{rank}.error").write_text(traceback.format_exc())
        raise


# Exit status of a child that may not have what `own_mounts` gives.
NOT_ALLOWED = 77


def own_mounts(*, process_ids: bool = False) -> ctypes.CDLL:
    """Give this process mounts of its own, and its children process ids of their own; returns the C library.

    The process ends with `NOT_ALLOWED` where the system lets nobody have them.
    """
    libc = ctypes.CDLL(None)
    user, mounts, ids, private = 0x10000000, 0x20000, 0x20000000, 0x44000
    flags = mounts | (ids if process_ids else 0) | (user if os.getuid() else 0)
    if libc.unshare(flags) or libc.mount(b"none", b"/", None, private, None):
        os._exit(NOT_ALLOWED)
    return libc
