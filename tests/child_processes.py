"""Processes of their own for tests, forked from one that has imported everything: each saves the seconds of importing.

That one has started no threads, so that its forks, unlike those of a process with torch's threads, do not stand still.
"""

import ctypes
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

IMPORTED = [
    "lit_pretrain.cli.lightning_cli",
    "mlflow.store.tracking.sqlalchemy_store",
    "small_pictures",
    "text_corpus",
    "toy_training",
]


def children() -> ForkServerContext:
    """Makes processes and queues as `multiprocessing` does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def both_ranks(work: Callable[[Path], Any], directory: Path) -> list[Any]:
    """What two processes that train together by gloo come to.

    Args:
        work: A function of a module; what it returns of `directory` is saved there and read again.
        directory: For both.

    Returns:
        The first process's result and the second's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [children().Process(target=_be_rank, args=(work, directory, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=240)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(directory / f"rank-{rank}.pt") for rank in range(2)]


def _be_rank(work: Callable[[Path], Any], directory: Path, rank: int, port: int) -> None:
    # The server that this is forked from has the seed of whichever test has started it.
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.save(work(directory), directory / f"rank-{rank}.pt")


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
