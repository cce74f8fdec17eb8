"""Fixtures that several folders share, and what holds for every process that runs tests."""

import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import process_memory
import pytest

# A process a core, so one thread each: before torch is imported, and for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # And the compiler's helpers would each import torch, for a handful of kernels.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Which vectors the processor has the compiler would find out by compiling and running a program for each kind.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
# oneDNN keeps the code of the last 1,024 shapes that it has met, which of all tests together are hundreds of megabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# Arrow's own allocator keeps what tables of other tests have had.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# The compiler for GPUs, which torch imports wherever it is installed: of no use without one, and 75 megabytes.
if not any((Path("/dev") / name).exists() for name in ("nvidiactl", "kfd", "dri", "dxg")):
    sys.modules.setdefault("triton", None)

if TYPE_CHECKING:
    from lit_pretrain.data import DocumentDataModule

MOST_WORKERS = 8


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests; the one that only hands them out imports nothing, as all would wait for it."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import child_processes
    import ready_database
    from lightning.fabric.utilities import registry

    from lit_pretrain import memory as training_memory
    from lit_pretrain.cli import lightning_cli

    # The place of the database that is copied, for the processes that tests start too.
    place = tempfile.mkdtemp(prefix="lit_pretrain-tests-")
    config.add_cleanup(functools.partial(shutil.rmtree, place, ignore_errors=True))
    os.environ[ready_database.VARIABLE] = str(Path(place) / "mlflow.db")
    # Before anything is replaced, as what runs in processes of its own is to run as for a person.
    child_processes.start_server()
    # A training in this process would keep its memory from all tests after it; those in processes of their own do.
    training_memory.keep_memory = lightning_cli.keep_memory = lambda: False
    # For every trainer all installed packages are asked for callbacks that they would add.
    registry.entry_points = functools.cache(registry.entry_points)


def pytest_xdist_auto_num_workers() -> int:
    """As many processes as this one may use cores, which need not be all; each takes up to 1.5 gigabytes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def pytest_collection_finish() -> None:
    """Leave out of every later search for garbage what stays: all that was imported, which is most of what there is."""
    process_memory.give_back()
    process_memory.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What the tests of a file have left is freed before those of the next."""
    yield
    process_memory.collect()


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """No test leaves much behind, and none needs too much."""
    yield
    process_memory.collect(beyond=process_memory.MUCH)
    process_memory.check_peak()


@pytest.fixture(autouse=True)
def no_seed_is_left() -> Iterator[None]:
    """Lightning keeps the last seed in the environment, from which later trainings of several processes would start."""
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The corpus as a file of JSON lines."""
    from text_corpus import write_corpus

    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> "DocumentDataModule":
    """The corpus in sentence pairs of 32 tokens, batches of 8."""
    from text_corpus import make_data

    return make_data(corpus, tmp_path)
