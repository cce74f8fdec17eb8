"""SLURM's requeue: a job whose time is up, or that is preempted, goes on with its own run when SLURM starts it again.

A requeued job keeps its id. What a run's directory says of the job, and of the command that began it, is how the same
command of the same job finds it again; no other job does, whatever directory it works in.
"""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment

from lit_pretrain.tracking.find import RunRecord, last_checkpoint_of, list_runs
from lit_pretrain.tracking.paths import write_atomically
from lit_pretrain.tracking.writer import first_line

JOB_NAME = "slurm.json"
# What SLURM says of a job that stays the same when it is queued anew.
JOB_VARIABLES = ("SLURM_CLUSTER_NAME", "SLURM_JOB_NAME", "SLURM_JOB_USER", "SLURM_SUBMIT_DIR")
REQUEUE_SECONDS = 30.0


def job_id() -> str | None:
    """Id of this process's job, of an array with its task; null outside of SLURM and in an interactive job."""
    if not SLURMEnvironment.detect() or "SLURM_JOB_ID" not in os.environ:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    identifier = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    return identifier if re.fullmatch(r"[0-9_-]+", identifier) else None


def requeue_signal(environment: Any) -> int | None:
    """The signal by which SLURM asks a trainer of this cluster environment to be queued anew, or null."""
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue or job_id() is None:
        return None
    return int(environment.requeue_signal) if environment.requeue_signal is not None else None


def write_job(directory: Path, command: Sequence[str]) -> None:
    """Note in a run's directory that this job works on it, if this is one.

    Args:
        directory: The run's.
        command: Words by which the training was started.
    """
    if (job := job_id()) is None:
        return
    former = read_job(directory) or {}
    same = former.get("job") == identity(job) and former.get("command") == digest(command)
    record = {
        "job": identity(job),
        "command": digest(command),
        "restarts": restarts(),
        "requeued": False,
        "began": former["began"] if same else time.time_ns(),
    }
    write_atomically(directory / JOB_NAME, json.dumps(record) + "\n")


def mark_requeued(directory: Path) -> None:
    """Note that the run of a directory waits for its job to be started again."""
    if (record := read_job(directory)) is not None:
        write_atomically(directory / JOB_NAME, json.dumps(record | {"requeued": True}) + "\n")


def requeue() -> str | None:
    """Ask SLURM to queue this job anew.

    Returns:
        Why it did not, or null.
    """
    job = job_id()
    assert job is not None  # only a batch job asks for it
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=REQUEUE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return first_line(error)
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else None


def run_to_go_on_with(command: Sequence[str], runs_directory: str | Path | None = None) -> RunRecord | None:
    """The run that this job worked on when it was queued anew, or null.

    Of several that one command of it has begun, one after the other, it is the first that is still to be taken up.

    Args:
        command: Words by which the training is started.
        runs_directory: Null takes $LIT_PRETRAIN_RUNS, else ./runs.
    """
    if (job := job_id()) is None:
        return None
    records = []
    for record in list_runs(runs_directory):
        noted = read_job(record.directory)
        if noted is None or (noted["job"], noted["command"]) != (identity(job), digest(command)):
            continue
        if (noted["requeued"] or noted["restarts"] < restarts()) and last_checkpoint_of(record) is not None:
            records.append((noted["began"], record))
    return min(records, key=lambda pair: pair[0])[1] if records else None


def read_job(directory: Path) -> dict[str, Any] | None:
    """What a run's directory says of its job; null if it says nothing."""
    try:
        return json.loads((directory / JOB_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def restarts() -> int:
    """How often this job was queued anew."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def identity(job: str) -> str:
    """A job's id with what else tells it from another cluster's, and from one that had its number long ago."""
    return "/".join([job, *(os.environ.get(name, "") for name in JOB_VARIABLES)])


def digest(command: Sequence[str]) -> str:
    """16 hexadecimal characters over a command's words, which may hold secrets."""
    return hashlib.sha256("\0".join(command).encode()).hexdigest()[:16]
