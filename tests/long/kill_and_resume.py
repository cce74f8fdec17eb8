"""Kills trainings at random times for half an hour, resumes them, and compares with trainings that nothing disturbed.

    python tests/long/kill_and_resume.py --directory /tmp/killed

trains a text, a vision and a contrastive config side by side. Every 2 to 4 minutes each is killed by SIGKILL, its whole
process group or (every other time, by chance) its main process alone, and goes on at once by `fit --ckpt_path last`.
A training without kills and without pauses is the reference. At the end it must hold, of each kind:

- weights, moments, averages and step of the last checkpoint are the reference's, bit for bit;
- one MLflow run, FINISHED, every metric with the reference's steps, each once, and the reference's values;
- no process of any life is left, those whose parent alone was killed included;
- the run's directory has the reference's files and no others;
- memory and open files after so many steps of a life do not grow from life to life, nor within the reference.

The exit status is 0 if all of it holds. `summary.json` in the directory has the figures. Linux only.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
# Small enough for three of them beside other work; what they do is what the shipped configs do.
SMALL_TEXT = [
    *("--data.batch_size", "16", "--data.max_documents", "24"),
    *("--model.encoder.transformer.width", "64", "--model.average.decay", "0.99"),
]
SMALL_VISION = ["--data.batch_size", "16", "--model.encoder.transformer", "{depth: 3, width: 48, heads: 3}"]
SMALL_PAIRS = [
    *("--data.pairs.batch_size", "16", "--data.text.batch_size", "8", "--data.vision.batch_size", "8"),
    *("--model.chunk_size", "8", "--model.embedding_width", "32"),
    *("--model.vision_encoder.transformer", "{depth: 2, width: 48, heads: 3}"),
    *("--model.text_encoder.transformer", "{depth: 2, width: 48, heads: 3, norm_order: pre}"),
]
PARTS = ("pairs.", "text.", "vision.")
# A kind's config, its experiment, what makes it small, and the prefixes of its data's `workers`.
KINDS: dict[str, tuple[str, str, list[str], tuple[str, ...]]] = {
    "text": ("configs/quickstart.yaml", "quickstart", SMALL_TEXT, ("",)),
    "vision": ("configs/vision/quickstart.yaml", "vision-quickstart", SMALL_VISION, ("",)),
    "contrastive": ("configs/contrastive/replay.yaml", "contrastive-replay", SMALL_PAIRS, PARTS),
}
# Seconds between two looks at a process, and those that its children may outlive it.
EVERY, GRACE = 2.0, 60.0
# Metrics that a clock or the machine has a say in.
TIMED = re.compile(r"system/|throughput/")
# Steps of a life after which lives are compared, and what they may differ by: share of the memory, number of files.
SETTLED, MORE, MORE_FILES = 20, 0.10, 4


@dataclass
class Sample:
    """A training at a moment: of its main process, and of all its processes."""

    seconds: float
    life: int
    step: int
    main_bytes: int
    bytes: int
    main_files: int
    files: int
    threads: int
    processes: int


@dataclass
class Life:
    """A process of a training from its start to its end."""

    number: int
    first_step: int | None = None
    last_step: int = 0
    seconds: float = 0.0
    end: str = ""
    outlived_seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)


class Training:
    """A training in a directory of its own, and the processes that belong to it.

    Args:
        kind: A key of `KINDS`.
        place: The directory; runs, temporary files, outputs.
        arguments: The script's.
        pace: Seconds of a step, at least.
    """

    all: ClassVar[list["Training"]] = []

    def __init__(self, kind: str, place: Path, arguments: argparse.Namespace, pace: float) -> None:
        Training.all.append(self)
        config, self.experiment, small, prefixes = KINDS[kind]
        self.kind, self.place = kind, place
        self.runs, self.temporary, self.steps_file = place / "runs", place / "tmp", place / "step"
        for directory in (self.runs, self.temporary):
            directory.mkdir(parents=True)
        workers = [word for prefix in prefixes for word in (f"--data.{prefix}workers", str(arguments.workers))]
        self.first_command = [
            *("fit", "--config", str(ROOT / config), *small, *workers),
            *("--trainer.max_steps", str(arguments.steps), "--trainer.val_check_interval", str(arguments.save_every)),
            *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.log_every_n_steps", "10"),
            *("--trainer.limit_val_batches", "4", "--trainer.enable_progress_bar", "false"),
            *("--trainer.callbacks+", "pace.Pace"),
            *("--trainer.callbacks.seconds", str(pace), "--trainer.callbacks.path", str(self.steps_file)),
        ]
        # Found in the environment of every process of the training, whatever group or session it is in.
        self.mark = f"LIT_PRETRAIN_RUNS={self.runs}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LIT_PRETRAIN_"))}
        paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        self.environment = kept | {"LIT_PRETRAIN_RUNS": str(self.runs), "TMPDIR": str(self.temporary)}
        self.environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.lives: list[Life] = []
        self.began = time.monotonic()

    @property
    def directory(self) -> Path:
        """Of its run, which must be one."""
        (directory,) = self.directories()
        return directory

    def directories(self) -> list[Path]:
        """Of all its runs."""
        return [path.parent for path in self.runs.glob(f"{self.experiment}/*/config.yaml")]

    def checkpoint(self) -> Path | None:
        """The last checkpoint, if there is one."""
        return next(self.runs.glob(f"{self.experiment}/*/checkpoints/last.ckpt"), None)

    def processes(self) -> list[int]:
        """All that live; those that have ended and wait for their parent do not count."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_own(pid)]

    def _is_own(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, or go on where there is a checkpoint; in a process group of its own."""
        command = ["fit", "--ckpt_path", "last"] if self.lives else self.first_command
        self.lives.append(Life(len(self.lives) + 1))
        self.steps_file.unlink(missing_ok=True)
        output = (self.place / f"life{len(self.lives):02}.log").open("wb")
        with output:
            return subprocess.Popen(
                [sys.executable, "-m", "lit_pretrain", *command],
                env=self.environment,
                cwd=self.place,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self, main: int, life: Life) -> Sample | None:
        """Memory and open files now; none before the first step."""
        with contextlib.suppress(OSError, ValueError):
            step = int(self.steps_file.read_text())
            life.first_step = step if life.first_step is None else life.first_step
            life.last_step = step
            own = self.processes()
            memory, files, threads = zip(*(facts(pid) for pid in own), strict=True)
            of_main = own.index(main)
            now = time.monotonic() - self.began
            sizes = (memory[of_main], sum(memory), files[of_main], sum(files), threads[of_main], len(own))
            life.samples.append(Sample(now, life.number, step, *sizes))
            return life.samples[-1]
        return None


def facts(pid: int) -> tuple[int, int, int]:
    """Bytes of a process (shared pages by share), its open files and its threads; nothing of one that has ended."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        memory = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return 1024 * int(memory[1]) if memory else 0, files, int(threads[1]) if threads else 0
    return 0, 0, 0


def live(training: Training, until: float = float("inf")) -> tuple[subprocess.Popen[bytes], Life]:
    """Start a life and watch it until it has ended or its time is over; without a checkpoint that is not yet so."""
    process = training.start()
    life, began = training.lives[-1], time.monotonic()
    while process.poll() is None and (time.monotonic() < until or training.checkpoint() is None):
        training.look(process.pid, life)
        time.sleep(EVERY)
    life.seconds = time.monotonic() - began
    return process, life


def undisturbed(kind: str, place: Path, arguments: argparse.Namespace, say: Callable[[str], None]) -> Training:
    """The reference: no kills, no pauses."""
    training = Training(kind, place, arguments, 0.0)
    process, life = live(training)
    life.end = f"exit status {process.returncode}"
    say(f"undisturbed: {life.end} after {life.seconds:.0f} s, step {life.last_step + 1}")
    if process.returncode != 0:
        raise RuntimeError(f"{kind}: the reference failed, see {place}/life01.log.")
    return training


def disturbed(kind: str, place: Path, arguments: argparse.Namespace, say: Callable[[str], None]) -> Training:
    """Kill and go on until the time is over, then let it end."""
    chance = random.Random(f"{arguments.seed} {kind}")
    training = Training(kind, place, arguments, arguments.pace)
    over = training.began + 60.0 * arguments.minutes
    outliving: list[threading.Thread] = []
    while True:
        strike = time.monotonic() + chance.uniform(*arguments.every)
        alone = chance.random() < 0.5
        process, life = live(training, strike if strike < over else float("inf"))
        if process.poll() is not None:
            life.end = f"exit status {process.returncode}"
            say(f"life {life.number}: steps {life.first_step} to {life.last_step + 1}, {life.end}")
            break
        family = training.processes()
        if alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        life.end = "its main process killed" if alone else "its process group killed"
        outliving.append(threading.Thread(target=wait_for_end, args=(training, family, life)))
        outliving[-1].start()
        say(f"life {life.number}: {life.seconds:.0f} s, steps {life.first_step} to {life.last_step}, {life.end}")
    for thread in outliving:
        thread.join()
    return training


def wait_for_end(training: Training, family: list[int], life: Life) -> None:
    """Note how long the processes of a life outlive it."""
    began = time.monotonic()
    while (alive := [pid for pid in family if training._is_own(pid)]) and time.monotonic() - began < GRACE:
        time.sleep(0.2)
    life.outlived_seconds = float("inf") if alive else time.monotonic() - began


# -- what must hold


def faults_of(killed: Training, straight: Training) -> Iterator[str]:
    """Everything that is not as it must be."""
    status = killed.lives[-1].end
    if status != "exit status 0":
        yield f"the last life ended with {status}"
        return
    if len(killed.directories()) != 1:
        yield f"there are {len(killed.directories())} runs"
        return
    yield from different_weights(killed.checkpoint(), straight.checkpoint())
    yield from different_metrics(killed, straight)
    time.sleep(2 * EVERY)
    left = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in killed.processes()]
    yield from (f"a process is left: {line}" for line in left)
    for life in killed.lives:
        if life.outlived_seconds > GRACE:
            yield f"processes of life {life.number} were there {GRACE:.0f} s after it"
    here, there = files_of(killed), files_of(straight)
    yield from (f"a file that the reference has not: {name}" for name in sorted((here - there).elements()))
    yield from (f"a file that only the reference has: {name}" for name in sorted((there - here).elements()))
    yield from growth(killed, straight)
    for life in killed.lives:
        text = (killed.place / f"life{life.number:02}.log").read_text(errors="replace")
        if "Traceback" in text:
            yield f"life {life.number} has a traceback in its output"


def different_weights(killed: Path | None, straight: Path | None) -> Iterator[str]:
    """Leaves of two checkpoints that are not the same bit for bit."""
    import torch

    from lit_pretrain.modules.averaging import AVERAGE

    if killed is None or straight is None:
        yield "there is no last checkpoint"
        return
    one, other = (torch.load(path, weights_only=True, map_location="cpu") for path in (killed, straight))
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", AVERAGE):
        found, expected = (torch.utils._pytree.tree_flatten(part.get(key)) for part in (one, other))
        if found[1] != expected[1]:
            yield f"{key} of the checkpoints has other parts"
            continue
        for leaf, wanted in zip(found[0], expected[0], strict=True):
            if not (torch.equal(leaf, wanted) if isinstance(leaf, torch.Tensor) else leaf == wanted):
                yield f"{key} of the checkpoints is different"
                break


def different_metrics(killed: Training, straight: Training) -> Iterator[str]:
    """What the killed training's run in MLflow has otherwise than the reference's."""
    found, expected = histories(killed), histories(straight)
    if isinstance(found, str) or isinstance(expected, str):
        yield str(found)
        return
    (status, metrics), (_, wanted) = found, expected
    if status != "FINISHED":
        yield f"the run is {status}"
    yield from (f"metric {name} is only in one of them" for name in sorted(metrics.keys() ^ wanted.keys()))
    for name in sorted(metrics.keys() & wanted.keys()):
        steps, wanted_steps = ([step for step, _ in rows[name]] for rows in (metrics, wanted))
        if len(set(steps)) < len(steps):
            yield f"metric {name} has steps twice: {sorted(step for step in set(steps) if steps.count(step) > 1)[:5]}"
        elif TIMED.match(name):
            # Every so many seconds, and rates not of a life's first steps.
            continue
        elif steps != wanted_steps:
            yield f"metric {name}: {len(steps)} steps, {len(wanted_steps)} in the reference"
        elif metrics[name] != wanted[name]:
            number = sum(pair[0] != pair[1] for pair in zip(metrics[name], wanted[name], strict=True))
            yield f"metric {name}: {number} of {len(steps)} values are different"


def histories(training: Training) -> tuple[str, dict[str, list[tuple[int, float]]]] | str:
    """The status of the one run of a training and its metrics, by step; or what is in the way."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{training.runs}/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    records = client.search_runs(experiments)
    if len(records) != 1:
        return f"there are {len(records)} runs in MLflow"
    run_id = records[0].info.run_id
    return records[0].info.status, {
        name: sorted((one.step, one.value) for one in client.get_metric_history(run_id, name))
        for name in records[0].data.metrics
    }


def files_of(training: Training) -> Counter[str]:
    """Names of all files that a training has made but for temporary ones, without what is unlike in every run."""
    directory = training.directory
    run_id = json.loads((directory / "run.json").read_text())["run_id"] if (directory / "run.json").is_file() else ""
    names = (str(path.relative_to(training.runs)) for path in training.runs.rglob("*") if not path.is_dir())
    plain = (name.replace(directory.name, "NAME").replace(run_id or directory.name, "RUN") for name in names)
    place = re.sub(r"[^\w-]", "_", str(training.runs))
    # Models and pictures have random names, and libraries call locks by the path of what they lock.
    unlike = re.compile(rf"m-[0-9a-f]{{32}}|timestamp\+\d+\+[0-9a-f-]{{36}}|{re.escape(place)}")
    # A run that goes on has a config of each life.
    return Counter(unlike.sub("_", name) for name in plain if "/config-resumed-" not in name)


def growth(killed: Training, straight: Training) -> Iterator[str]:
    """Memory and open files that grow from life to life, or within the reference towards its end."""
    lives = [values for life in killed.lives if (values := settled(life)) is not None]
    if len(lives) >= 2:
        (memory, files), (last_memory, last_files) = lives[0], lives[-1]
        if last_memory > (1.0 + MORE) * max(memory, lives[1][0]):
            yield f"memory of a life has grown from {megabytes(memory)} to {megabytes(last_memory)} MB"
        if last_files > max(files, lives[1][1]) + MORE_FILES:
            yield f"open files of a life have grown from {files} to {last_files}"
    samples = straight.lives[0].samples
    # Of all processes the most of a quarter, from the third on: how many there are goes up and down, and workers of a
    # second epoch are forked with what the other data sets' workers are spoken to by, those of the first not yet.
    for name, figure, first in (
        ("bytes", statistics.median, 1),
        ("main_files", statistics.median, 1),
        ("files", max, 2),
    ):
        before, after = (figure([getattr(sample, name) for sample in quarter(samples, n)]) for n in (first, 3))
        if after > (before + MORE_FILES if name == "main_files" else before * (1.0 + MORE)):
            yield f"{name} of the reference have grown from its quarter {first + 1} to 4: {before:.0f} to {after:.0f}"


def quarter(samples: list[Sample], number: int) -> list[Sample]:
    """A quarter of the samples."""
    size = max(1, len(samples) // 4)
    return samples[number * size : (number + 1) * size]


def settled(life: Life) -> tuple[float, float] | None:
    """Memory and open files of a life, the medians of what was seen after its first steps; none of a short one."""
    later = [sample for sample in life.samples if sample.step >= (life.first_step or 0) + SETTLED]
    if not later:
        return None
    return statistics.median(one.bytes for one in later), statistics.median(one.files for one in later)


def megabytes(number: float) -> int:
    """A round number of millions."""
    return round(number / 1e6)


# -- the script


def told(training: Training, straight: Training, faults: list[str]) -> dict[str, Any]:
    """A training's figures."""
    lives = []
    for life in training.lives:
        values = settled(life)
        row = {name: value for name, value in asdict(life).items() if name != "samples"}
        row |= {"megabytes": megabytes(values[0]), "files": values[1]} if values else {}
        row["peak_megabytes"] = megabytes(max((one.bytes for one in life.samples), default=0))
        lives.append(row)
    samples = straight.lives[0].samples
    parts = {name: [getattr(one, name) for one in samples] for name in ("bytes", "files")}
    reference: dict[str, Any] = {"seconds": straight.lives[0].seconds, "files": [parts["files"][0], parts["files"][-1]]}
    reference["megabytes_by_quarter"] = [
        megabytes(statistics.median(one.bytes for one in quarter(samples, number))) for number in range(4)
    ]
    kills = [life for life in training.lives if life.end.endswith("killed")]
    again = sum(max(0, one.last_step - (two.first_step or 0)) for one, two in itertools.pairwise(training.lives))
    return {
        "kind": training.kind,
        "kills": len(kills),
        "kills_of_main_process_alone": sum("main" in life.end for life in kills),
        "steps_done_twice": again,
        "temporary_files_left": len(list(training.temporary.iterdir())),
        "reference": reference,
        "lives": lives,
        "faults": faults,
    }


def end_all(number: int | None = None, frame: object = None) -> None:
    """End all trainings, and this script at a signal, whatever its threads wait for."""
    for pid in (pid for training in Training.all for pid in training.processes()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if number is not None:
        os._exit(128 + number)


def seconds_of(text: str) -> float:
    """30s, 2m or a plain number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 90s or 2m")
    return float(found[1]) * (60.0 if found[2] == "m" else 1.0)


def interval(text: str) -> tuple[float, float]:
    """2m-4m."""
    least, _, most = text.partition("-")
    return seconds_of(least), seconds_of(most or least)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="a new directory for all that is written")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="trainings, side by side")
    parser.add_argument("--minutes", type=float, default=30.0, help="for which trainings are killed (30)")
    parser.add_argument("--every", type=interval, default=(120.0, 240.0), help="time between kills (2m-4m)")
    parser.add_argument("--steps", type=int, help="of a training (as many as fill the minutes)")
    parser.add_argument("--pace", type=float, default=0.6, help="seconds of a step at least (0.6)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between validations and checkpoints (50)")
    parser.add_argument("--workers", type=int, default=2, help="loader workers of each data set (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_all)
    arguments.directory = arguments.directory.resolve()
    arguments.steps = arguments.steps or round(60.0 * arguments.minutes / arguments.pace)
    arguments.directory.mkdir(parents=True)

    def train(kind: str, way: str) -> Training:
        def say(sentence: str) -> None:
            print(f"{time.strftime('%H:%M:%S')} {kind}: {sentence}", flush=True)

        function = undisturbed if way == "straight" else disturbed
        training = function(kind, arguments.directory / kind / way, arguments, say)
        (training.place / "lives.json").write_text(json.dumps([asdict(life) for life in training.lives]))
        return training

    rows = []
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            killed = {kind: pool.submit(train, kind, "killed") for kind in arguments.kinds}
            # One after the other: they make no pauses.
            straight = {kind: train(kind, "straight") for kind in arguments.kinds}
        for kind in arguments.kinds:
            training = killed[kind].result()
            faults = list(faults_of(training, straight[kind]))
            rows.append(told(training, straight[kind], faults))
            print(f"{kind}: {rows[-1]['kills']} kills; {'; '.join(faults) or 'all holds'}", flush=True)
        (arguments.directory / "summary.json").write_text(json.dumps(rows, indent=1))
    finally:
        end_all()
    return 1 if any(row["faults"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
