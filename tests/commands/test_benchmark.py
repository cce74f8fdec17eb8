"""The benchmarks run whole: ours beside peers, a fit beside its bare step, and the rows as JSON."""

import json
from importlib.util import find_spec

import child_processes
import pytest
from small_pictures import write_pictures

from lit_pretrain.__main__ import main
from lit_pretrain.commands.benchmarks import contrastive, fine_tuning

BRIEF = ["--rounds", "2", "--seconds", "0.02", "--no-compile"]
TEXT = ["--sizes", "tiny", "--vocabulary-size", "300", "--sequence-length", "16", "--batch-size", "2"]
VISION = ["--shapes", "24/4/32/1", "--stored-size", "16", "--batch-size", "4"]


def test_text(tmp_path):
    file = tmp_path / "rows.json"
    settings = ["--fit", "--max-documents", "20", "--json", str(file)]
    shown = child_processes.output_of("benchmark", "text", *TEXT, *BRIEF, *settings)
    rows = {row["contestant"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["ours, eager", "transformers, eager", "whole fit"]
    ours, _, fit = rows.values()
    assert ours["ours_is_faster_by"] == 1.0
    assert ours["tokens_per_second"] == pytest.approx(2 * 16 / ours["milliseconds_per_step"] * 1e3)
    assert fit["share_of_bare_step"] == pytest.approx(fit["milliseconds_per_bare_step"] / fit["milliseconds_per_step"])
    assert "both kept" in shown


def test_packing(tmp_path, capsys):
    file = tmp_path / "rows.json"
    settings = ["--size", "tiny", "--max-documents", "200", "--vocabulary-size", "300", "--batch-size", "2"]
    assert main(["benchmark", "packing", *settings, *BRIEF[:-1], "--json", str(file)]) == 0
    padded, packed = json.loads(file.read_text())
    assert packed["number_of_rows"] < padded["number_of_rows"] and padded["filled"] < 0.9 < packed["filled"] <= 1
    assert packed["tokens"] / packed["filled"] == pytest.approx(4 * 2 * 128)
    assert "times padded" in capsys.readouterr().out


def test_vision(tmp_path):
    file, pictures = tmp_path / "rows.json", write_pictures(tmp_path / "pictures.parquet", count=40)
    settings = ["--images", str(pictures), "--json", str(file)]
    shown = child_processes.output_of("benchmark", "vision", *VISION, *BRIEF, "--fit", *settings)
    rows = json.loads(file.read_text())
    assert [row.get("contestant") or row["objective"] for row in rows] == [
        "ours, eager",
        "timm, eager",
        "ours, 1 thread",
        "torchvision, 1 thread",
        "rotation",
        "rotation, one view",
        "patch location, crops",
        "patch location, tokens",
        "colorization",
        "masked image modelling",
        "whole fit",
    ]
    ours, timm, our_input, peer_input, *objectives, fit = rows
    for row in (ours, timm, our_input, peer_input):
        assert row["pictures_per_second"] == pytest.approx(4 / row["milliseconds_per_step"] * 1e3)
    # Both need the same operations, so their ratio is that of the times.
    assert ours["needed_teraflops"] / timm["needed_teraflops"] == pytest.approx(timm["ours_is_faster_by"])
    assert our_input["cached_pictures"] == 40 and our_input["seconds_to_build_cache"] > 0
    # Nine crops of one patch of the 36, or a fourth of the patches.
    assert [row["passes_per_picture"] for row in objectives] == [4, 1, 0.25, 1, 1, 0.25]
    for row in objectives:
        picture, passes = row["microseconds_per_picture"], row["passes_per_picture"]
        assert picture == pytest.approx(row["milliseconds_per_step"] * 1e3 / 4)
        assert row["microseconds_per_pass"] == pytest.approx(picture / passes)
    assert objectives[0]["pass_in_passes_of_rotation"] == 1.0
    assert fit["shape"] == "24/4/32/1" and fit["share_of_bare_step"] > 0
    assert all(words in shown for words in ("Training steps", "Reading pictures", "each objective", "Whole fits"))


def test_contrastive(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.json"
    shape = ["--shapes", "16/8/32/1/32/1", "--caption-tokens", "9", "77", "--vocabulary-size", "1200"]
    settings = ["--batch-size", "4", *BRIEF, "--fit", "--json", str(file)]
    assert "MB/pair" in child_processes.output_of("benchmark", "contrastive", *shape, *settings)
    *steps, fit = json.loads(file.read_text())
    assert [(row["shape"][-2:], row["contestant"]) for row in steps] == [
        (tokens, contestant) for tokens in (" 9", "77") for contestant in ("ours, eager", "open_clip, eager")
    ]
    for row in steps:
        assert row["pairs_per_second"] == pytest.approx(4 / row["milliseconds_per_step"] * 1e3)
    short, _, full, _ = (row["megabytes_kept_per_pair"] for row in steps)
    assert 0 < short < full
    assert fit["share_of_bare_step"] == pytest.approx(fit["milliseconds_per_bare_step"] / fit["milliseconds_per_step"])

    monkeypatch.setattr(contrastive, "find_spec", lambda name: None)
    assert main(["benchmark", "contrastive", *shape, "--batch-size", "2", *BRIEF]) == 0
    shown = capsys.readouterr().out
    assert "pip install 'lit_pretrain[peers]'" in shown and "open_clip, eager" not in shown


def test_fine_tuning(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.json"
    settings = ["--texts", "8", "--batch-size", "4", "--maximum-length", "16", "--rounds", "1"]
    # As fit resolves it on most processors of today, where the peer refuses it unless it is told to use them.
    assert main(["benchmark", "fine-tuning", *settings, "--precision", "bf16-mixed", "--json", str(file)]) == 0
    ours, *peers = json.loads(file.read_text())
    assert ours["contestant"] == "ours" and ours["ours_is_faster_by"] == 1.0
    assert [row["contestant"] for row in peers] == ["transformers", "transformers, grouped by length"]
    for row in (ours, *peers):
        assert row["texts_per_second"] == pytest.approx(8 / row["seconds"])
        assert row["ours_is_faster_by"] == pytest.approx(row["seconds"] / ours["seconds"])
    capsys.readouterr()
    monkeypatch.setattr(fine_tuning, "find_spec", lambda name: None if name == "accelerate" else find_spec(name))
    assert main(["benchmark", "fine-tuning", *settings, "--weights", str(tmp_path)]) == 2
    assert "pip install 'lit_pretrain[peers]'" in capsys.readouterr().out
    # Two rounds each, of which the peer's take two and four times as long.
    rounds = {"ours": [(1.0, 2.0), (2.0, 4.0)], "transformers": [(2.0, 8.0), (8.0, 16.0)]}
    _, peer = fine_tuning.rows_of(rounds, 10, "32-true")
    assert (peer["seconds"], peer["ours_is_faster_by"], peer["ours_is_faster_by_in_processor_seconds"]) == (5, 3, 4)


def test_an_objective_that_does_not_fit_is_said_and_left_out(tmp_path, capsys):
    file = tmp_path / "rows.json"
    settings = ["--parts", "objectives", "--shapes", "12/4/32/1", "--batch-size", "2", "--json", str(file)]
    assert main(["benchmark", "vision", *settings, *BRIEF]) == 0
    assert "patch location, crops" not in [row["objective"] for row in json.loads(file.read_text())]
    assert "12/4/32/1 without patch location, crops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["text", "--sizes", "tinny"], "There is no size 'tinny' (did you mean 'tiny'?)"),
        (["text", "--sizes", "tiny", "--json", "no/rows.json"], "cannot be written"),
        (["vision", "--json", "no/rows.json"], "cannot be written"),
        (["vision", "--parts", "stepp"], "There is no part 'stepp' (did you mean 'step'?)"),
        (["vision", "--shapes", "cifr"], "There is no shape 'cifr' (did you mean 'cifar'?)"),
        (["vision", "--shapes", "32/5/64/2"], "does not divide"),
        (
            ["vision", "--parts", "input", "--images", "/no/where"],
            "There is no file or directory /no/where: check --images",
        ),
        (["contrastive", "--shapes", "smal"], "There is no shape 'smal' (did you mean 'small'?)"),
        (["contrastive", "--caption-tokens", "78"], "--caption-tokens is 78: give lengths from 3 to 77"),
        (["contrastive", "--batch-size", "1"], "--batch-size is 1"),
        (["fine-tuning", "--texts", "99999"], "--texts is 99999, and the bundled speeches have 25,488 paragraphs"),
        (["fine-tuning", "--weights", "nowhere"], "nowhere"),
        (["packing", "--size", "tini"], "There is no size 'tini' (did you mean 'tiny'?)"),
        ([], "the following arguments are required"),
        (["vision", "--rounds", "0"], "argument --rounds: '0' is no whole number from 1 on"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *arguments]) == 2
    assert words in capsys.readouterr().err
