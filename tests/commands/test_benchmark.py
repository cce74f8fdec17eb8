"""The benchmark runs whole: ours beside transformers, a fit beside its bare step, and the rows as JSON."""

import json
from types import SimpleNamespace

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.commands.benchmarks.contest import Contestant, hold, ratio
from lit_pretrain.commands.benchmarks.step import our_step, random_batch
from lit_pretrain.commands.benchmarks.text import peer_step
from lit_pretrain.objectives import compute_objectives

SMALL = [
    "--vocabulary-size",
    "300",
    "--sequence-length",
    "16",
    "--batch-size",
    "2",
    "--rounds",
    "2",
    "--seconds",
    "0.05",
]


def test_all_contestants_and_the_whole_fit(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert main(["benchmark", "text", "--sizes", "tiny", *SMALL, "--no-compile", "--fit", "--json", str(file)]) == 0
    rows = {row["contestant"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["ours, eager", "transformers, eager", "whole fit"]
    ours, peer, fit = rows.values()
    assert ours["ours_is_faster_by"] == 1.0 and ours["tokens_per_second"] > 0
    # Ours as fit runs it, the peer as its users do.
    assert ours["milliseconds_per_step"] == ours["milliseconds_per_step_memory_kept"]
    assert peer["milliseconds_per_step"] == peer["milliseconds_per_step_memory_not_kept"]
    expected = peer["milliseconds_per_step"] / ours["milliseconds_per_step"]
    assert peer["ours_is_faster_by"] == pytest.approx(expected)
    assert fit["share_of_bare_step"] == pytest.approx(fit["milliseconds_per_bare_step"] / fit["milliseconds_per_step"])
    assert "both kept" in capsys.readouterr().out


def test_ours_and_the_peer_lose_the_same():
    """Same weights, same hidden positions: the two contestants do the same work."""
    arguments = SimpleNamespace(vocabulary_size=300, sequence_length=16, batch_size=4, dropout=0.0)
    batch = random_batch(arguments, torch.device("cpu"))
    _, module = our_step(arguments, "tiny", batch, torch.float32, compiled=False)
    peer = peer_step(arguments, module, batch, torch.float32, compiled=False)
    model = next(cell.cell_contents for cell in peer.step.__closure__ if hasattr(cell.cell_contents, "bert"))
    inputs = next(
        cell.cell_contents
        for cell in peer.step.__closure__
        if isinstance(cell.cell_contents, dict) and "labels" in cell.cell_contents
    )
    outputs = compute_objectives(module.encoder, module.objectives, batch, torch.Generator())
    losses = [float(module.sum_losses(outputs)), float(model(**inputs).loss)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rounds_are_taken_in_turn():
    order = []
    ones = [Contestant(name, lambda name=name: order.append(name)) for name in "ab"]
    hold(ones, rounds=2, seconds=0.0, kept=False, warm_up_steps=1)
    assert order == list("ab" + "abab") and [len(one.seconds) for one in ones] == [2, 2] and not ones[0].kept_seconds
    assert ratio([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 2.0


def test_what_cannot_be_measured_is_said_first(tmp_path, capsys):
    assert main(["benchmark", "text", "--sizes", "tinny"]) == 2
    assert "There is no size 'tinny' (did you mean 'tiny'?)" in capsys.readouterr().err
    assert main(["benchmark", "text", "--sizes", "tiny", "--json", str(tmp_path / "no" / "rows.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
