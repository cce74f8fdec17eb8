"""Two processes train together: they stop after the same step, and only one of them writes."""

import json
import os
import signal
import time
from pathlib import Path

import toy_training
from child_processes import children

from lit_pretrain.tracking.find import find_checkpoint, list_runs
from lit_pretrain.tracking.store import open_store


def test_ranks_stop_after_the_same_step_and_one_of_them_writes(tmp_path):
    root, log = Path(__file__).parents[2], tmp_path / "log"
    arguments = [str(tmp_path / "runs"), str(tmp_path / "progress")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = children().Process(target=toy_training.be_program, args=(arguments, environment, tmp_path, log))
    process.start()
    try:
        deadline = time.monotonic() + 120
        first = tmp_path / "progress-0"
        while time.monotonic() < deadline and process.is_alive():
            if first.exists() and "step 5" in first.read_text().splitlines():
                break
            time.sleep(0.02)
        # As a terminal does: to all of them, which are at different places in their step.
        os.killpg(process.pid, signal.SIGINT)
        process.join(timeout=60)
        exit_code = process.exitcode
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
    output = log.read_text()
    assert exit_code == 130, output
    seen = [
        json.loads((tmp_path / f"progress-{rank}").read_text().splitlines()[-1].removeprefix("seen "))
        for rank in range(2)
    ]
    assert seen[0] == seen[1] and len(seen[0][0]) >= 6
    assert output.count("go on with: python -m lit_pretrain fit") == 1
    (record,) = list_runs(tmp_path / "runs")
    assert find_checkpoint("last", runs_directory=tmp_path / "runs").parent == record.checkpoints
    client = open_store(record.tracking_uri, tmp_path / "runs")
    (experiment,) = [one for one in client.search_experiments() if one.name == "toy"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.tags["devices"] == "2 x cpu"
    # Nothing lies about beside the one run.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "progress-0", "progress-1", "runs"]
