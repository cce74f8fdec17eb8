"""What a command's work runs on: this machine, or the machines of a Ray cluster."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from lit_pretrain.commands.benchmark import positive
from lit_pretrain.errors import UserError

ENGINES = ("local", "ray")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument("--engine", choices=ENGINES, default="local", help="this machine, or a Ray cluster (local)")
    parser.add_argument(
        "--address",
        metavar="A",
        help="of the cluster: auto, of which this machine is part, or HOST:PORT (default: one of this machine alone)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="of a process; cores that it has in a cluster")


def check_engine(arguments: argparse.Namespace) -> None:
    """Raise `UserError` if what was chosen contradicts itself."""
    if arguments.engine == "local" and arguments.address:
        raise UserError(f"--address is {arguments.address}, and only --engine ray has one: add that, or leave it out.")
    if arguments.engine == "ray" and getattr(arguments, "jobs", None):
        raise UserError(
            f"--jobs is {arguments.jobs}, which is for one machine: leave it out, --engine ray does at a time what the "
            "cluster has cores and GPUs for (--threads N for each)."
        )


@contextlib.contextmanager
def engine(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Any]:
    """What was chosen, while it is used.

    Args:
        arguments: Of the command, checked.
        say: Told of it.

    Raises:
        UserError: If it cannot be used.
    """
    if arguments.engine == "local":
        from lit_pretrain.studies.processes import Machine

        yield Machine(arguments.jobs or 1, arguments.threads)
        return
    from lit_pretrain.studies.cluster import Cluster

    cluster = Cluster(arguments.address, arguments.threads, say)
    try:
        say(f"The cluster has {cluster}.")
        yield cluster
    finally:
        cluster.close()
