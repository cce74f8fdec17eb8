"""Processes of their own for tests, forked from one that has imported everything: each saves the seconds of importing.

That one has started no threads, so that its forks, unlike those of a process with torch's threads, do not stand still.
"""

import multiprocessing
from multiprocessing.context import ForkServerContext

IMPORTED = [
    "lit_pretrain.cli",
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
