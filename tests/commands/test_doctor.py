"""`doctor` on this very machine: when all is well, and with what people's machines have wrong."""

import json
import sqlite3

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.commands import checks, device_check


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "runs"


def test_a_healthy_machine_passes_and_the_rows_are_written(runs, tmp_path, capsys):
    file = tmp_path / "doctor.json"
    before = torch.random.get_rng_state()

    assert main(["doctor", "--json", str(file)]) == 0

    rows = {row["check"]: row for row in json.loads(file.read_text())}
    assert all(set(row) == {"check", "status", "found", "advice"} for row in rows.values())
    assert {row["status"] for row in rows.values()} <= {"ok", "warn"}
    assert torch.__version__.split("+")[0] in rows["packages"]["found"]
    assert rows["precision"]["found"].startswith(("auto is 32-true", "auto is bf16-mixed"))
    assert "will be made" in rows["database"]["found"]
    assert rows["training"]["status"] == "ok"
    # Nothing is left behind, and the random state is as it was.
    assert list(runs.iterdir()) == []
    assert torch.equal(before, torch.random.get_rng_state())
    printed = capsys.readouterr().out
    assert "training" in printed and "loss" in printed


def test_runs_that_cannot_be_written_fail_with_what_to_do(tmp_path, monkeypatch, capsys):
    # A file where a directory should be: that stops root too, whom permissions do not.
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("COLUMNS", "200")

    assert main(["doctor", "--runs", str(blocked / "runs")]) == 1

    printed = capsys.readouterr().out
    assert "fail" in printed and "LIT_PRETRAIN_RUNS" in printed and "1 of" in printed


def test_a_database_is_opened_and_a_damaged_one_is_named(runs):
    from lit_pretrain.tracking.store import open_store, resolve_tracking_uri

    runs.mkdir()
    open_store(resolve_tracking_uri(None, runs), runs)
    (row,) = checks.check_database()
    assert row.status == checks.OK and "mlflow.db" in row.found

    (runs / "mlflow.db").write_bytes(b"this is no database" * 100)
    (row,) = checks.check_database()
    assert row.status == checks.FAIL and "move it away" in row.advice


def test_a_tracking_server_that_is_not_there_fails(runs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    (row,) = checks.check_database()
    assert row.status == checks.FAIL and "127.0.0.1:1" in row.found


def test_a_loss_must_fall_and_be_finite():
    statuses = [checks.judge_training(losses, "").status for losses in ([2.0, 1.0], [2.0, 2.5], [2.0, float("nan")])]
    assert statuses == ["ok", "fail", "fail"]


def test_a_check_that_breaks_is_a_row_of_its_own():
    def check_something():
        raise sqlite3.OperationalError("disk\nI/O error")

    (row,) = checks.guarded(check_something)
    assert (row.check, row.status, row.found) == ("something", "fail", "OperationalError: disk I/O error")


def test_a_json_file_that_cannot_be_written_is_one_sentence(capsys):
    assert main(["doctor", "--json", "/no/such/place.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_device_is_checked_by_every_objective_module_and_precision(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    # Speed is measured elsewhere, and compilation takes a compiler and half a minute.
    monkeypatch.setattr(device_check, "SPEED_SECONDS", 0.05)
    monkeypatch.setattr(device_check, "SECONDS_TO_COMPILE", 1e6)
    monkeypatch.setitem(device_check.SIZES, "cpu", (32, 1, 16, 4, 24, 8))
    before, file = torch.random.get_rng_state(), tmp_path / "device.json"

    assert main(["doctor", "--device", "--json", str(file)]) == 0

    rows = {row["check"]: row for row in json.loads(file.read_text())}
    for kind in device_check.objective_kinds():
        found = rows[kind.name.replace("_", " ")]
        assert found["status"] == "ok" and "fp32 0.0e+00, bf16" in found["found"], found
    assert {
        "contrastive, clip",
        "contrastive, siglip",
        "fine-tuning on texts",
        "fine-tuning on pictures",
    } <= rows.keys()
    # What the device cannot do is said once, and is no failure.
    assert rows["fp16"]["status"] == "warn" and "needs an accelerator" in rows["fp16"]["found"]
    for words in ("texts", "pictures"):
        assert rows[f"gradient checkpointing, {words}"]["status"] == "ok"
        assert "outputs are equal" in rows[f"checkpoint and export, {words}"]["found"]
    for words in ("tokens", "pictures"):
        assert "% of the" in rows[f"{words} a second, fp32"]["found"]
    assert "compiled, rotation" in rows["time"]["found"]
    assert torch.equal(before, torch.random.get_rng_state())
    assert "there is no accelerator" in capsys.readouterr().out or torch.accelerator.is_available()


def test_a_device_that_computes_something_else_is_told(monkeypatch):
    case = device_check.cases("")[-1]
    check = device_check.Check(torch.device("cpu"))
    check.about_precisions()
    train = device_check.train
    monkeypatch.setattr(device_check, "train", spoilt(train))
    row = check.guarded(case.name, lambda: check.case_row(case, device_check.made_up_batch()))
    assert row.status == "fail" and "wrong: fp32" in row.found and "bf16" in row.found


def spoilt(train):
    """Losses on the device, asked for with two steps, are one per cent too large."""
    return lambda module, batch, device, precision, steps=2: [
        loss * (1.0 if steps == 1 else 1.01) for loss in train(module, batch, device, precision, steps)
    ]


def test_a_device_and_a_config_are_checked_one_at_a_time(capsys):
    assert main(["doctor", "--device", "--gradients", "--config", "x.yaml"]) == 2
    assert "one of the two" in capsys.readouterr().err
