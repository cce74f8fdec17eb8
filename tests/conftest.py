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
# Files that take longest, or whose fixtures do, the longest first.
LONG = (
    *("test_cli", "test_study", "test_configs", "test_export", "test_resume", "test_sweep", "test_why"),
    *("test_text_pretraining", "test_every_module", "test_joined_batch", "test_sharded_processes"),
    *("test_vision_callbacks", "test_checkpoints_named", "test_evaluate", "test_image_data_module", "test_benchmark"),
    *("test_register", "test_cluster", "test_compare", "test_plan", "test_larger_vocabulary", "test_gradient_check"),
    *("test_colorization", "test_collector", "test_best_checkpoint", "test_vision_processes"),
    *("test_contrastive_processes", "test_evaluation_processes", "test_fine_tuning_processes", "test_server"),
)


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each process whole files, the long ones first: what another takes over at the end needs few fixtures."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    long = sorted((path for path in files if path.stem in LONG), key=lambda path: LONG.index(path.stem))
    if workers == 1 or not long:
        return
    # There and back, so that none has the longer of every two.
    turns = [*range(workers), *reversed(range(workers))]
    shares: list[list[Path]] = [[] for _ in range(workers)]
    for place, path in enumerate(long):
        shares[turns[place % len(turns)]].append(path)
    others = [path for path in files if path not in long]
    for number, share in enumerate(shares, start=1):
        # Each begins with so many of all tests.
        while others and (number == workers or sum(len(files[path]) for path in share) < len(items) / workers):
            share.append(others.pop(0))
    items[:] = [item for share in shares for path in share for item in files[path]]


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
