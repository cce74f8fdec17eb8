"""Studies on a Ray cluster of two nodes, both in this machine, of which one is killed; what cannot be used is said."""

import contextlib
import json
import shutil
import tempfile
import threading
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from small_pictures import picture_config, write_pictures

from lit_pretrain.__main__ import main
from lit_pretrain.tracking.find import find_run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lit_pretrain[cluster]'")

ENCODER = {
    "class_path": "VisionEncoder",
    "init_args": {"image_size": 16, "patch_size": 4, "transformer": {"depth": 1, "width": 32, "heads": 2}},
}
# Ray takes its own address for the loopback's by this alone; nothing leaves the machine, nothing is counted.
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
HEAD = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
SYSTEM = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A place with pictures and a config that fine-tunes on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("cluster")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.chdir(directory)
        pictures = write_pictures(directory / "pictures.parquet", 60)
        config = picture_config(pictures, [], trainer={"callbacks": None}, batch_size=4)
        config["model"] = {"class_path": "FineTuning", "init_args": {"encoder": ENCODER}}
        (directory / "fine_tuning.yaml").write_text(yaml.safe_dump(config))
        yield directory


@pytest.fixture(scope="module")
def cluster(home):
    """Two nodes; when they are stopped, no process is left."""
    from ray.cluster_utils import Cluster

    # Names of sockets may have 107 characters, which a test's own directory leaves too few of.
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"RAY_TMPDIR": directory}).items():
            patch.setenv(name, value)
        patch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
        nodes = Cluster(initialize_head=True, head_node_args=NODE | HEAD | {"_system_config": SYSTEM})
        nodes.second = nodes.add_node(**NODE)
        try:
            yield nodes
        finally:
            nodes.shutdown()
    assert not left_over(directory)
    shutil.rmtree(directory)


def left_over(directory):
    """Processes that were started for the nodes and still run after some seconds, in which they may end."""
    deadline, mark = time.monotonic() + 20, f"RAY_TMPDIR={directory}".encode()
    # This process has those that its own studies are forked from until its end.
    own = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes() and int(path.name) not in own:
                    found.append((path / "cmdline").read_bytes())
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def study(home, name, **settings):
    content = {"fine_tuning": "fine_tuning.yaml", "encoders": {"scratch": None}, "label_budgets": ["all"]}
    content |= {"metric": "validation/accuracy"} | settings
    (home / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


def test_a_node_is_killed_in_the_middle_of_a_study(home, cluster, capsys):
    file = study(home, "killed", seeds=[0, 1, 2], steps=400, validations=2)

    ended = threading.Event()

    def kill():
        while not ended.wait(0.05):
            logs = list((home / "runs" / "studies").glob("killed-*/cells/*.log"))
            # There is a core for one on each node.
            if sum("FineTuning:" in log.read_text() for log in logs) >= 2:
                time.sleep(0.3)
                cluster.remove_node(cluster.second, allow_graceful=False)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        command = ["study", "label-efficiency", "--config", file, "--engine", "ray", "--address", cluster.address]
        status = main([*command, "--json", "rows.json"])
    finally:
        ended.set()
        thread.join()
    shown = capsys.readouterr()
    print(shown.out, shown.err)
    assert status == 0
    assert len(cluster.list_all_nodes()) == 1
    assert "The cluster has 2 machines with 2 cores" in shown.out
    assert "it goes on elsewhere" in shown.out
    (row,) = json.loads((home / "rows.json").read_text())
    assert row["finished"] == 3
    record = find_run("killed")
    outcomes = [json.loads(path.read_text()) for path in record.directory.glob("cells/*.json")]
    assert [outcome["status"] for outcome in outcomes] == ["finished"] * 3
    client = MlflowClient(record.tracking_uri)
    experiment = client.get_experiment_by_name("studies").experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{record.run_id}'")
    finished = [run for run in runs if run.info.status == "FINISHED"]
    assert sorted(run.info.run_id for run in finished) == sorted(outcome["run_id"] for outcome in outcomes)
    assert len({run.data.tags["study.cell"] for run in finished}) == len(finished) == 3
    assert main([*command]) == 0
    assert "validation/accuracy" not in capsys.readouterr().out.split("The files")[0].split("cluster has")[0]
