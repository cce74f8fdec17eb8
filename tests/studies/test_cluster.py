"""Studies on a Ray cluster of two nodes, both in this machine, of which one is killed; what cannot be used is said."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from small_pictures import picture_config, write_pictures
from small_training import small_config

from lit_pretrain.__main__ import main
from lit_pretrain.data import disk_cache
from lit_pretrain.tracking.find import find_run

MISSING = "--engine ray needs Ray: pip install 'lit_pretrain[cluster]'."
# Imported by the tests themselves, since a process that runs others has no memory for it.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason=MISSING)

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
    import ray
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


def kill_machine(cluster):
    """End the second node and all that it has started, as a loss of power does."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    (raylet,) = cluster.second.all_processes["raylet"]
    found = [raylet.process.pid]
    for number in found:
        found += [child for child, parent in parents.items() if parent == number]
    for number in found[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    cluster.remove_node(cluster.second, allow_graceful=False)


def study(home, name, **settings):
    content = {"fine_tuning": "fine_tuning.yaml", "encoders": {"scratch": None}, "label_budgets": ["all"]}
    content |= {"metric": "validation/accuracy"} | settings
    (home / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return ["study", "label-efficiency", "--config", f"{name}.yaml"]


def ended_by(arguments, capsys):
    """Exit status of a command, and what it said at last."""
    status = main(arguments)
    return status, capsys.readouterr().err.splitlines()[-1]


def test_an_engine_that_cannot_be_used_is_one_sentence(home, capsys, monkeypatch):
    command = study(home, "unused")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        closed = silent.getsockname()[1]
    words = {
        ("--address", "auto"): "--address is auto, and only --engine ray has one",
        ("--engine", "ray", "--jobs", "2"): "--jobs is 2, which is for one machine",
        ("--engine", "ray", "--address", f"127.0.0.1:{closed}"): "(nothing answers at 127.0.0.1:",
        ("--engine", "ray", "--address", "ray://head:10001"): "Ray's address for clients",
    }
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    for arguments, sentence in words.items():
        began = time.monotonic()
        status, said = ended_by([*command, *arguments], capsys)
        assert status == 2 and sentence in said and said.startswith("lit_pretrain: "), said
        assert time.monotonic() - began < 40
    monkeypatch.setitem(sys.modules, "ray", None)
    assert ended_by([*command, "--engine", "ray"], capsys) == (2, "lit_pretrain: " + MISSING)
    assert not (home / "runs" / "studies").exists()


def test_a_node_is_killed_in_the_middle_of_a_study(home, cluster, capsys):
    command = study(home, "killed", seeds=[0, 1, 2], steps=200, validations=2)
    ended = threading.Event()

    def kill():
        while not ended.wait(0.05):
            logs = list((home / "runs" / "studies").glob("killed-*/cells/*.log"))
            # There is a core for one on each node.
            if sum("FineTuning:" in log.read_text() for log in logs) >= 2:
                kill_machine(cluster)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        cluster_arguments = ["--engine", "ray", "--address", cluster.address]
        assert main([*command, *cluster_arguments, "--json", "rows.json"]) == 0
    finally:
        ended.set()
        thread.join()
    shown = capsys.readouterr().out
    assert len(cluster.list_all_nodes()) == 1
    assert "The cluster has 2 machines with 2 cores" in shown and shown.count("it goes on elsewhere") == 1
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
    assert "RUNNING" not in {run.info.status for run in runs}
    # What is done is not done again, by whatever engine.
    assert main(command) == 0
    assert "[3/3]" not in capsys.readouterr().out


# The one node that is left by then serves the others.


def test_what_no_machine_has_is_refused(home, cluster, capsys):
    command = [*study(home, "large"), "--engine", "ray", "--address", cluster.address]
    status, said = ended_by([*command, "--threads", "3"], capsys)
    assert status == 2 and "takes 3 cores on one machine" in said and "has 1 core and 0 GPUs" in said
    assert not list((home / "runs" / "studies").glob("large-*"))


def test_parts_of_a_cache_are_built_by_the_cluster(home, cluster, corpus, capsys, monkeypatch):
    (home / "text.yaml").write_text(yaml.safe_dump(small_config(corpus)))
    monkeypatch.setattr(disk_cache, "PART_BYTES", corpus.stat().st_size // 2)
    command = ["prepare", "--config", "text.yaml", "--data.cache_directory"]
    assert main([*command, "one", "--trainer.accelerator", "gpu"]) == 0
    assert main([*command, "two", "--engine", "ray", "--address", cluster.address]) == 0
    assert "The cluster builds 2 parts." in capsys.readouterr().out
    built = [{path.name: path.read_bytes() for path in home.glob(f"{name}/documents/*/*")} for name in ("one", "two")]
    assert built[0] == built[1] and len(built[0]) == 6
    assert not list(home.glob("two/documents/*.parts"))
