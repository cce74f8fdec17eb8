"""What `fit` does before its first step, counted in a process of its own, as a person starts it."""

import gc
import json
import subprocess
import sys

import pytest
from small_training import small_config, write_config

from lit_pretrain.collector import import_for_good, paused_collector

FIT = """
import gc, json, sys
from lit_pretrain.__main__ import main
status = main(["fit", "--config", sys.argv[1]])
full = gc.get_stats()[2]["collections"]
print(json.dumps({"status": status, "full": full, "packages": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def test_fit_on_text_imports_only_what_it_needs_and_is_not_searched_for_garbage_meanwhile(corpus, tmp_path):
    trainer = {"max_steps": 1, "limit_val_batches": 0, "enable_checkpointing": False, "logger": False}
    config = write_config(tmp_path / "one_step.yaml", small_config(corpus, trainer))
    done = subprocess.run([sys.executable, "-c", FIT, str(config)], capture_output=True, text=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["status"] == 0, done.stderr
    assert not {"mlflow", "open_clip", "onnxscript", "sentence_transformers", "sklearn", "timm"} & set(
        facts["packages"]
    )
    # Each goes through all objects that were imported; there were eight.
    assert facts["full"] <= 2


def test_what_is_imported_at_the_beginning_is_not_searched_again(monkeypatch):
    name = "wave"
    monkeypatch.delitem(sys.modules, name, raising=False)
    gc.collect()
    try:
        module = import_for_good(name)
        frozen = gc.get_freeze_count()
        assert module.__name__ == name and frozen > 10_000 and gc.isenabled()
        kept = [[] for _ in range(100)]
        # Models that were made since may have become garbage.
        assert import_for_good(name) is module and gc.get_freeze_count() == frozen and len(kept) == 100
    finally:
        gc.unfreeze()


def test_the_collector_is_left_as_it_was():
    with pytest.raises(KeyError), paused_collector():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
