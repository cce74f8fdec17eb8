"""Runs and checkpoints by what a person calls them."""

import json
import os

import pytest

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import find_checkpoint, find_run, list_runs, run_directory_of_checkpoint, split_tower


def make_run(runs, experiment, name, run_id, age=0, checkpoints=()):
    directory = runs / experiment / f"{name}-{run_id[:8]}"
    (directory / "checkpoints").mkdir(parents=True)
    record = {"run_id": run_id, "experiment": experiment, "tracking_uri": "sqlite:///x", "run_name": name}
    (directory / "run.json").write_text(json.dumps(record))
    os.utime(directory / "run.json", (1e9 - age, 1e9 - age))
    for name, checkpoint_age in checkpoints:
        path = directory / "checkpoints" / name
        path.write_text("weights")
        os.utime(path, (1e9 - checkpoint_age, 1e9 - checkpoint_age))
    return directory


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, "text", "bert", "aaaa1111" * 4, age=5, checkpoints=[("last.ckpt", 5), ("epoch=1.ckpt", 1)])
    make_run(tmp_path, "text", "electra", "aaaa2222" * 4, age=3, checkpoints=[("last.ckpt", 4), ("last-v1.ckpt", 3)])
    make_run(tmp_path, "vision", "rotation", "bbbb1111" * 4, age=4, checkpoints=[("last.ckpt", 2)])
    make_run(tmp_path, "vision", "twice", "cccc1111" * 4)
    make_run(tmp_path, "vision", "twice", "cccc2222" * 4)
    broken = tmp_path / "vision" / "broken-00000000"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize("reference", ["aaaa1111" * 4, "aaaa1", "bert", "bert-aaaa1111"])
def test_run_by_id_prefix_name_and_directory(runs, reference):
    assert find_run(reference, runs).run_name == "bert"
    assert find_run(str(runs / "text" / "bert-aaaa1111")).run_id == "aaaa1111" * 4


def test_what_fits_several_or_none_names_them(runs):
    with pytest.raises(UserError, match=r"'aaaa' fits 2 runs: .*aaaa2222 \(text/electra\), aaaa1111 \(text/bert\)"):
        find_run("aaaa", runs)
    with pytest.raises(UserError, match="'twice' fits 2 runs"):
        find_run("twice", runs)
    with pytest.raises(UserError, match=r"called 'elektra' \(did you mean 'electra'\?\)"):
        find_run("elektra", runs)
    with pytest.raises(UserError, match="called 'aaa'"):  # too short to mean an id
        find_run("aaa", runs)
    with pytest.raises(UserError, match="There are no runs in"):
        find_run("bert", runs / "nowhere")


def test_of_runs_of_one_name_that_with_checkpoints_is_meant(runs):
    make_run(runs, "text", "bert", "dddd1111" * 4)  # a test of bert, called as it is
    with pytest.raises(UserError, match="'bert' fits 2 runs"):
        find_run("bert", runs)
    assert find_checkpoint("bert", runs_directory=runs).parts[-3:] == ("bert-aaaa1111", "checkpoints", "last.ckpt")
    make_run(runs, "text", "bert", "dddd2222" * 4, checkpoints=[("last.ckpt", 0)])
    with pytest.raises(UserError, match="'bert' fits 2 runs"):
        find_checkpoint("bert", runs_directory=runs)


def test_runs_latest_first_without_the_broken_one(runs):
    assert [record.run_name for record in list_runs(runs)][2:] == ["electra", "rotation", "bert"]
    assert [record.run_name for record in list_runs(runs, "text")] == ["electra", "bert"]


def test_checkpoints(runs):
    assert find_checkpoint("last", runs_directory=runs).parts[-3:] == ("rotation-bbbb1111", "checkpoints", "last.ckpt")
    assert find_checkpoint("last", "text", runs).name == "last-v1.ckpt"
    with pytest.raises(UserError, match="run rotation has no checkpoint"):  # none that is best
        find_checkpoint("last:best", runs_directory=runs)
    make_run(runs, "text", "newest", "eeee1111" * 4, checkpoints=[("last.ckpt", 0), ("best-step=000007.ckpt", 1)])
    assert find_checkpoint("last:best", runs_directory=runs).name == "best-step=000007.ckpt"
    with pytest.raises(UserError, match="no last.ckpt of experiment 'other' in"):
        find_checkpoint("last:best", "other", runs)
    assert find_checkpoint("bert", runs_directory=runs).parent.parent.name == "bert-aaaa1111"
    path = runs / "text" / "bert-aaaa1111" / "checkpoints" / "epoch=1.ckpt"
    assert find_checkpoint(str(path)) == path
    assert run_directory_of_checkpoint(path) == path.parent.parent
    with pytest.raises(UserError, match=r"no last.ckpt of experiment 'other' in"):
        find_checkpoint("last", "other", runs)
    with pytest.raises(UserError, match="has no checkpoint"):
        find_checkpoint("cccc1", runs_directory=runs)
    with pytest.raises(UserError, match=r"epoch=2.ckpt does not exist \(did you mean '.*epoch=1.ckpt'\?\)"):
        find_checkpoint(str(path.with_name("epoch=2.ckpt")))


def test_a_tower_is_named_after_all_else(tmp_path):
    assert split_tower("run:text") == ("run", "text")
    assert split_tower("run:best:vision") == ("run:best", "vision")
    for one in ("run:best", "text", ":text", "a/b.ckpt"):
        assert split_tower(one) == (one, None)
    (tmp_path / "odd:text").write_text("")
    assert split_tower(str(tmp_path / "odd:text")) == (str(tmp_path / "odd:text"), None)
