"""Real processes that start at once on a new database, and end in every way a process can end."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import child_processes
import pytest
from toy_training import ToyData, ToyModule, make_trainer, train_in_child

from lit_pretrain.tracking.find import list_runs
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.processes import is_alive, process_identity


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
    return directory / "runs", results


def test_exit_codes_are_the_shells(children):
    codes = {name: child.exit_code for name, child in children[1].items()}
    expected = {"interrupted": 130, "terminated in a validation": 143, "killed": -signal.SIGKILL}
    assert codes == expected, children[1]


def test_all_share_the_database_and_the_dead_one_is_found(children):
    runs, results = children
    # Starting the next run marks the one that could not say how it ended.
    logger = MLflowLogger(experiment="toy", runs_directory=str(runs))
    client = logger.experiment
    found = client.search_runs([logger.experiment_id])
    assert len(found) == len(CHILDREN) + 1
    status = {run.data.tags["process.identity"].split("@")[0]: run.info.status for run in found}
    assert status.pop(str(os.getpid())) == "RUNNING"
    assert status == {str(child.process_id): "KILLED" for child in results.values()}
    logger.finalize("success")


def test_what_is_said_on_interruption(children):
    output = children[1]["interrupted"].output
    assert "press Ctrl-C again" in output
    assert "go on with --ckpt_path" in output
    assert "Traceback" not in output


def test_interrupted_process_is_gone_on_with_elsewhere(children):
    runs, results = children
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


def test_a_process_is_told_by_its_start_too():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    assert is_alive(identity) and is_alive(process_identity())
    assert not is_alive(f"{process.pid}@another-start")
    process.communicate(b"\n")
    assert not is_alive(identity)
    assert not is_alive("") and not is_alive("nonsense")
