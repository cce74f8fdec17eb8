"""What `doctor` looks at, one function a subject; each returns rows and never raises."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.tracking.paths import resolve_runs_directory, shown_path

if TYPE_CHECKING:
    import torch

OK, WARN, FAIL = "ok", "warn", "fail"
LITTLE_DISK = 2 * 2**30
SECONDS = 1.0
LONGEST_STEPS = 200


@dataclass(frozen=True)
class Row:
    """One finding.

    Args:
        check: What was looked at.
        status: `ok`, `warn` or `fail`.
        found: What was found.
        advice: What to do, empty if nothing.
    """

    check: str
    status: str
    found: str
    advice: str = ""

    def as_dictionary(self) -> dict[str, str]:
        """Plain keys for JSON."""
        return asdict(self)


def all_checks(runs: str | None = None) -> list[Callable[[], list[Row]]]:
    """The checks in the order in which they are shown.

    Args:
        runs: Runs directory; null takes the usual one.
    """
    checks = [check_versions, check_devices, check_precision, check_compiler]
    checks += [partial(check_runs_directory, runs), partial(check_database, runs), check_training]
    return [partial(guarded, check) for check in checks]


def guarded(check: Callable[[], list[Row]]) -> list[Row]:
    """Run a check; what it did not foresee is a finding too, and the others still run."""
    try:
        return check()
    except Exception as error:
        name = getattr(check, "func", check).__name__.removeprefix("check_").replace("_", " ")
        sentence = " ".join(str(error).split())[:300]
        return [Row(name, FAIL, f"{type(error).__name__}: {sentence}", "mend what the message names")]


def check_versions() -> list[Row]:
    """Python, and every package this one needs, against the ranges it was made for."""
    import platform

    rows = [Row("python", OK, platform.python_version())]
    try:
        requirements = distribution("lit_pretrain").requires or []
    except PackageNotFoundError:
        rows.append(Row("lit_pretrain", WARN, "not installed, only on the path", 'pip install -e ".[test]"'))
        requirements = []
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in requirements]
    required = [
        requirement
        for requirement in required
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    versions, wrong = [], []
    for requirement in required or [Requirement(name) for name in ("torch", "lightning", "mlflow", "datasets")]:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
        elif requirement.name in ("torch", "torchvision", "lightning", "mlflow", "datasets", "tokenizers", "timm"):
            versions.append(f"{requirement.name} {installed}")
    rows.append(Row("packages", OK, ", ".join(versions)))
    if wrong:
        rows.append(Row("packages", FAIL, "; ".join(wrong), "pip install -e . in a fresh virtual environment"))
    # A torchvision of another torch breaks `import lightning` with a message that names neither.
    import torchvision  # noqa: F401

    return rows


def check_devices() -> list[Row]:
    """GPUs, or the processor and the threads it is used with."""
    import torch

    from lit_pretrain.tracking.machine import processor_name, usable_cores

    cores, threads = usable_cores(), torch.get_num_threads()
    rows = [Row("processor", OK, f"{processor_name()}, {cores} usable cores")]
    if threads > cores:
        rows.append(Row("threads", WARN, f"{threads} on {cores} cores", f"export OMP_NUM_THREADS={cores}"))
    else:
        rows.append(Row("threads", OK, f"{threads} of {cores} cores"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            rows.append(Row(f"GPU {index}", OK, f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"))
    elif Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        advice = "update the driver, or install the torch made for it"
        rows.append(Row("GPU", WARN, f"a driver, but torch {torch.__version__} sees no GPU", advice))
    else:
        rows.append(Row("GPU", OK, "none; trainings use the processor"))
    return rows


def check_precision() -> list[Row]:
    """The processor's instructions, and which precision `auto` takes."""
    import torch

    from lit_pretrain.precision import resolve_precision

    instructions = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    has = [name for name, there in instructions.items() if there]
    precision = str(resolve_precision("auto"))
    reason = "bf16 in hardware" if precision.startswith("bf16") else "no bf16 in hardware"
    return [
        Row("instructions", OK, ", ".join(has) or "none of AVX2, AVX512, AMX"),
        Row("precision", OK, f"auto is {precision}: {reason}"),
    ]


def check_compiler() -> list[Row]:
    """A C++ compiler, which torch.compile needs on a processor."""
    import torch

    chosen = os.environ.get("CXX")
    candidates = [chosen] if chosen else ["g++", "clang++", "c++"]
    compiler = next((path for name in candidates if (path := shutil.which(name))), None)
    if compiler:
        return [Row("C++ compiler", OK, compiler)]
    # On a GPU Triton compiles; it needs a C compiler only.
    if torch.cuda.is_available() and shutil.which("gcc"):
        return [Row("C++ compiler", OK, "none, and none needed on a GPU")]
    advice = "install g++ for compile_blocks: true (as in apt install g++); all else works without"
    return [Row("C++ compiler", WARN, f"no {' or '.join(candidates)}", advice)]


def check_runs_directory(runs: str | None = None) -> list[Row]:
    """Whether runs can be written, and how much room there is."""
    directory = resolve_runs_directory(runs)
    name = "runs directory"
    advice = "make it writable, or set LIT_PRETRAIN_RUNS to another place"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".doctor-") as file:
            file.write(b"lit_pretrain")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [Row(name, FAIL, f"{shown_path(directory)}: {error.strerror}", advice)]
    free = shutil.disk_usage(directory).free
    rows = [Row(name, OK, f"{shown_path(directory)} is writable")]
    little = free < LITTLE_DISK
    advice = "free some: a checkpoint takes 12 bytes a parameter" if little else ""
    rows.append(Row("free disk", WARN if little else OK, f"{free / 2**30:.1f} GiB", advice))
    return rows


def check_database(runs: str | None = None) -> list[Row]:
    """MLflow's store: reachable, sound, and of a version this MLflow can use."""
    from lit_pretrain.tracking.schema import schema_of
    from lit_pretrain.tracking.store import open_store, resolve_tracking_uri

    directory = resolve_runs_directory(runs)
    try:
        uri = resolve_tracking_uri(None, directory)
        address = without_credentials(uri)
        local = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        if local is not None and not local.exists():
            # Nothing is left behind: the first run makes its database itself.
            with sqlite3.connect(":memory:") as connection:
                connection.execute("create table probe (value integer)")
            return [Row("database", OK, f"{shown_path(local)} will be made by the first run")]
        if local is not None:
            with contextlib.closing(sqlite3.connect(f"file:{local}?mode=ro", uri=True)) as connection:
                answer = connection.execute("pragma quick_check").fetchone()[0]
            if answer != "ok":
                raise sqlite3.DatabaseError(answer)
            if schema_of(local)[0] == "older":
                # Looking changes nothing.
                advice = "nothing to do: the next command that opens it keeps a copy and upgrades it"
                return [Row("database", WARN, f"{shown_path(local)} has the tables of an earlier MLflow", advice)]
        experiments = len(open_store(uri, directory).search_experiments())
    except UserError as error:
        return [Row("database", FAIL, str(error), "see the message")]
    except sqlite3.Error as error:
        broken = shown_path(local) if local is not None else address
        advice = f"restore {broken} from a copy, or move it away to start a new one"
        return [Row("database", FAIL, f"{broken}: {error}", advice)]
    place = shown_path(local) if local is not None else address
    return [Row("database", OK, f"{place}, {experiments} experiments")]


def check_training() -> list[Row]:
    """About a second of masked language modelling and next sentence prediction on random word pieces."""
    import torch

    from lit_pretrain.precision import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = str(resolve_precision("auto"))
    losses, seconds = train_a_second(device, precision)
    return [judge_training(losses, f"{seconds:.1f} s on {device}, {precision}")]


def judge_training(losses: list[float], circumstances: str) -> Row:
    """The losses of a training by heart must be finite and fall."""
    summary = f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps, {circumstances}"
    if not all(math.isfinite(loss) for loss in losses):
        return Row("training", FAIL, summary, "try --trainer.precision 32-true, then another version of torch")
    if losses[-1] >= losses[0]:
        return Row("training", FAIL, summary, "the loss must fall: install torch anew, without other builds beside it")
    return Row("training", OK, summary)


def train_a_second(device: torch.device, precision: str) -> tuple[list[float], float]:
    """Train a small encoder on one batch, which it can only learn by heart.

    Args:
        device: Where.
        precision: `bf16-mixed` or `32-true`.

    Returns:
        The loss of each step, and the seconds without those of the first step.
    """
    import torch

    from lit_pretrain.backbone import TextEncoder, TransformerConfig
    from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
    from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction, compute_objectives

    # The person's own random state is left alone.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(0)
        vocabulary, batch = random_text(device)
        encoder = TextEncoder(vocabulary.vocabulary_size, transformer=TransformerConfig(depth=2, width=64))
        objectives = [MaskedLanguageModeling(), NextSentencePrediction()]
        for objective in objectives:
            objective.build(encoder, vocabulary)
        modules = [part.to(device).train() for part in (encoder, *objectives)]
        optimizer = make_optimizer(modules, AdamWConfig(learning_rate=3e-3))
        generator = torch.Generator(device=device)
        losses: list[float] = []
        start = time.monotonic()
        while len(losses) < LONGEST_STEPS and (len(losses) < 10 or time.monotonic() - start < SECONDS):
            # The same tokens are hidden at every step, so that the loss must fall.
            generator.manual_seed(0)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                outputs = compute_objectives(encoder, objectives, batch, generator)
                loss = torch.stack([output.loss for output in outputs.values()]).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            if len(losses) == 1:
                start = time.monotonic()
        return losses, time.monotonic() - start


def random_text(device: torch.device) -> tuple[Any, dict[str, torch.Tensor]]:
    """A made-up vocabulary of 512 pieces, and 8 pairs of 32 tokens of it."""
    from types import SimpleNamespace

    import torch

    size, shape = 512, (8, 32)
    vocabulary = SimpleNamespace(
        vocabulary_size=size, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * size
    )
    batch = {
        "input_ids": torch.randint(5, size, shape),
        "attention_mask": torch.ones(shape, dtype=torch.bool),
        "token_type_ids": (torch.arange(shape[1]) >= shape[1] // 2).long().expand(shape).contiguous(),
        "next_sentence_label": torch.randint(0, 2, shape[:1]),
    }
    return vocabulary, {name: value.to(device) for name, value in batch.items()}
