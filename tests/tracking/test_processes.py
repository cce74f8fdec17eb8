"""Real processes that start at once on a new database, and end in every way a process can end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import child_processes
import pytest
from toy_training import ToyData, ToyModule, make_trainer, train_in_child

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import list_runs
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.processes import Presence, is_alive, process_identity, state_of


class Child(NamedTuple):
    """What a child left behind."""

    process_id: int
    exit_code: int
    output: str
    progress: list[str]


# What each child waits for, what it is then sent, and how slow it is, so that the signal finds it there.
CHILDREN = {
    "interrupted": ("step 5", signal.SIGINT, {"step_seconds": 0.05}),
    "terminated in a validation": ("validation 20 1", signal.SIGTERM, {"validation_seconds": 0.3}),
    "killed": ("step 5", signal.SIGKILL, {"step_seconds": 0.05}),
}


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """Three trainings started together on one new runs directory, each ended as its name says."""
    directory = tmp_path_factory.mktemp("together")
    context = child_processes.children()
    processes = {}
    for name, (_, _, slowness) in CHILDREN.items():
        (directory / f"{name}.txt").touch()
        arguments = (directory / "runs", directory / f"{name}.txt", directory / f"{name}.log", slowness)
        processes[name] = context.Process(target=train_in_child, args=arguments)
        processes[name].start()
    try:
        waiting = dict(CHILDREN)
        deadline = time.monotonic() + 120
        while waiting and time.monotonic() < deadline:
            for name, (moment, number, _) in list(waiting.items()):
                if moment in (directory / f"{name}.txt").read_text().splitlines() or not processes[name].is_alive():
                    del waiting[name]
                    os.kill(processes[name].pid, number)
            time.sleep(0.02)
        for process in processes.values():
            process.join(timeout=30)
    finally:
        for process in processes.values():
            process.kill()
    results = {
        name: Child(
            process.pid,
            process.exitcode,
            (directory / f"{name}.log").read_text(),
            (directory / f"{name}.txt").read_text().splitlines(),
        )
        for name, process in processes.items()
    }
    # Starting the next run marks the one that could not say how it ended. Other tests go on with the runs, and may be
    # first.
    logger = MLflowLogger(experiment="toy", runs_directory=str(directory / "runs"))
    found = logger.experiment.search_runs([logger.experiment_id])
    logger.finalize("success")
    return directory / "runs", results, found


def test_exit_codes_are_the_shells(children):
    codes = {name: child.exit_code for name, child in children[1].items()}
    expected = {"interrupted": 130, "terminated in a validation": 143, "killed": -signal.SIGKILL}
    assert codes == expected, children[1]


def test_all_share_the_database_and_the_dead_one_is_found(children):
    _, results, found = children
    assert len(found) == len(CHILDREN) + 1
    status = {run.data.tags["process.identity"].split("@")[0]: run.info.status for run in found}
    assert status.pop(str(os.getpid())) == "RUNNING"
    assert status == {str(child.process_id): "KILLED" for child in results.values()}


def test_what_is_said_on_interruption(children):
    output = children[1]["interrupted"].output
    assert "press Ctrl-C again" in output
    assert re.search(r"go on with: python -m lit_pretrain fit .*--ckpt_path \S", output)
    assert "Traceback" not in output


def test_interrupted_process_is_gone_on_with_elsewhere(children):
    runs, results, _ = children
    client = MLflowLogger(experiment="toy", runs_directory=str(runs)).experiment
    for name in ("interrupted", "terminated in a validation"):
        identity = f"{results[name].process_id}@"
        record = next(
            record
            for record in list_runs(runs)
            if client.get_run(record.run_id).data.tags["process.identity"].startswith(identity)
        )
        seen, validated = json.loads(results[name].progress[-1].removeprefix("seen "))
        trainer = make_trainer(runs)
        checkpoint = str(record.checkpoints / "last.ckpt")
        assert trainer.logger.resume_from(checkpoint)
        module = ToyModule()
        trainer.fit(module, ToyData(), ckpt_path=checkpoint)
        steps = seen + module.seen
        assert [step for step, _ in steps] == list(range(50))
        assert [sample for _, sample in steps] == [step // 20 * 1000 + step % 20 for step in range(50)]
        assert validated + module.validated == [20, 40]


def train_in_container(*arguments):
    """`train_in_child` with process ids of its own, as containers have them."""
    libc = child_processes.own_mounts(process_ids=True)
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    libc.prctl(1, signal.SIGKILL)  # ends with its parent
    libc.mount(b"proc", b"/proc", b"proc", 0, None)
    train_in_child(*arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces of process ids are Linux's")
def test_the_living_run_of_another_container_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_pretrain.tracking.processes.LINGER_SECONDS", 1.0)
    runs, progress, output = (tmp_path / name for name in ("runs", "progress.txt", "log.txt"))
    progress.touch()
    other = child_processes.children().Process(
        target=train_in_container, args=(runs, progress, output, {"step_seconds": 1.0})
    )
    other.start()
    try:
        deadline = time.monotonic() + 120
        while "step 1" not in progress.read_text() and other.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if other.exitcode == child_processes.NOT_ALLOWED:
            pytest.skip("this machine lets no process have process ids of its own")
        (record,) = list_runs(runs)
        client = MLflowLogger(experiment="toy", runs_directory=str(runs)).experiment
        assert client.get_run(record.run_id).info.status == "RUNNING", output.read_text()
        with pytest.raises(UserError, match="is still going on in process"):
            _ = MLflowLogger(runs_directory=str(runs), run_id=record.run_id).experiment
    finally:
        other.kill()
        other.join()
    # Its lock is gone with it, at once.
    again = MLflowLogger(runs_directory=str(runs), run_id=record.run_id).experiment
    assert again.get_run(record.run_id).data.tags["process.identity"] == process_identity()


def test_another_machine_is_seen_by_the_time_it_gives_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_pretrain.tracking.processes.BEAT_SECONDS", 0.05)
    identity = process_identity().replace(process_identity().split(".")[1], "0" * 8)
    assert state_of(identity) == state_of(identity, tmp_path) == "unknown"
    presence = Presence(tmp_path)
    # Of another machine, a lock need not be seen.
    monkeypatch.setattr("lit_pretrain.tracking.processes._is_locked", lambda path: False)
    assert (state_of(identity, tmp_path), state_of(identity, tmp_path, wait=5.0)) == ("unknown", "alive")
    presence.end()
    time.sleep(0.2)
    assert (state_of(identity, tmp_path), state_of(identity, tmp_path, wait=0.3)) == ("unknown", "dead")
    os.utime(tmp_path / ".alive", (0, time.time() - 700))
    assert state_of(identity, tmp_path) == "dead"


def test_a_process_is_told_by_its_start_too():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    assert is_alive(identity) and is_alive(process_identity())
    assert not is_alive(f"{process.pid}@another-start")
    process.communicate(b"\n")
    assert not is_alive(identity) and state_of(identity) == "dead"
    # As earlier versions wrote it, of this boot.
    assert is_alive(process_identity().rpartition(".")[0])
    assert not is_alive("") and not is_alive("nonsense")
