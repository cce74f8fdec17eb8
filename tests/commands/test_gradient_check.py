"""`doctor --gradients`: by chunks and by processes of its own, with a loss that is right and one that is not."""

import json
import os
import socket
from pathlib import Path

import pytest
import yaml
from child_processes import Command, output_of
from small_pairs import pair_config, write_pairs

from lit_pretrain.__main__ import main

HERE = Path(__file__).parent


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config of pairs, whose dropout would make any two arrangements differ."""
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "pairs.yaml"
    content = pair_config(write_pairs(tmp_path / "pairs.parquet"))
    path.write_text(yaml.safe_dump(content))
    return path


def rows_of(file):
    return {row["check"]: row for row in json.loads(file.read_text())}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_chunks_give_the_whole_batchs_gradients_in_any_precision(config, tmp_path, precision):
    file = tmp_path / "rows.json"

    settings = ["--trainer.precision", precision, "--model.chunk_size", "5", "--pairs", "12", "--json", str(file)]
    shown = output_of("doctor", "--gradients", "--config", str(config), *settings)

    rows = rows_of(file)
    assert f"1 x 12 pairs in chunks of 5, SingleDeviceStrategy, {precision}" in rows["arrangement"]["found"]
    assert {row["status"] for row in rows.values()} == {"ok"}
    # What mixed precision costs is told beside it, and is what the limits are made of.
    assert ("precision" in rows) == (precision == "bf16-mixed")
    assert ("1.0e-05 is rounding" in rows["gradients"]["found"]) == (precision == "32-true")
    assert "whole batch" in shown
    # No run is made of it.
    assert not list((tmp_path / "runs").glob("*.db"))


def test_pairs_are_of_that_check_alone(capsys):
    assert main(["doctor", "--pairs", "8"]) == 2
    assert "--pairs is for --gradients" in capsys.readouterr().err


def test_what_is_replayed_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "rows.json"
    config = HERE.parent.parent / "configs" / "contrastive" / "replay.yaml"
    small = ["--data.pairs.max_pictures", "80", "--data.text.max_documents", "40", "--data.vision.max_pictures", "80"]
    small += ["--data.text.vocabulary_size", "400", "--trainer.precision", "32-true"]

    output_of("doctor", "--gradients", "--config", str(config), *small, "--pairs", "8", "--json", str(file))

    rows = rows_of(file)
    assert rows["arrangement"]["found"].startswith("1 x 8 pairs") and rows["gradients"]["status"] == "ok"


@pytest.mark.parametrize("loss", ["lit_pretrain.objectives.Contrastive", "local_contrastive.LocalContrastive"])
def test_two_processes_are_compared_with_one(config, tmp_path, loss):
    file = tmp_path / "rows.json"
    settings = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    settings += ["--trainer.precision", "32-true", "--model.objective", loss, "--json", str(file)]
    # As Lightning's launcher or torchrun would start them.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    arguments = ["doctor", "--gradients", "--config", str(config), *settings]
    ranks = [Command(*arguments, **os.environ | together | {"LOCAL_RANK": str(rank)}) for rank in range(2)]
    try:
        (output, errors), (other_output, _) = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()

    rows = rows_of(file)
    assert rows["arrangement"]["found"].startswith("2 x 8 pairs, DDPStrategy")
    right = loss.startswith("lit_pretrain")
    assert [rank.returncode for rank in ranks] == [0 if right else 1] * 2, errors
    assert rows["gradients"]["status"] == rows["loss"]["status"] == ("ok" if right else "fail")
    # One of the two tells it.
    assert output.count("arrangement") == 1 and "arrangement" not in other_output
    assert ("not what one process with the whole batch trains" in output) != right


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "add --config FILE"),
        (["--pairs", "0"], "--pairs is 0"),
        (["--pairs", "many"], "invalid int value: 'many'"),
        (["--config", "configs/quickstart.yaml"], "this config trains TextPretraining"),
        (["--config", "CONFIG", "--trainer.accumulate_grad_batches", "2"], "model.chunk_size"),
        (["--config", "CONFIG", "--model.chunk", "2"], "chunk_size"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(config, capsys, arguments, words):
    arguments = [str(config) if one == "CONFIG" else one for one in arguments]
    assert main(["doctor", "--gradients", *arguments]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("lit_pretrain: ") and words in message
