"""Runs of real trainings side by side, and their pages opened in a browser."""

import json
import re
from pathlib import Path

import pytest
import yaml
from browser import open_page
from small_pictures import picture_config, write_pictures
from small_training import small_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.tracking.find import find_run

ENCODER = {
    "class_path": "VisionEncoder",
    "init_args": {"image_size": 16, "patch_size": 4, "transformer": {"depth": 2, "width": 16, "heads": 2}},
}
NAMES = {"a": '<b>bold</b> & "quoted"', "b": "pictures-seed-1"}


def fit(directory: Path, name: str, config: dict, *arguments: str) -> None:
    """Train under a name."""
    config["trainer"]["logger"]["init_args"] |= {"experiment": "shown", "run_name": name}
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 2}
    throughput = {"class_path": "lit_pretrain.callbacks.Throughput", "init_args": {"warm_up_batches": 0}}
    config["trainer"]["callbacks"] = [throughput]
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(file), *arguments]) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pretraining on pictures, two seeds that are fine-tuned from it, one of other data, one on text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("compared")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.setenv("COLUMNS", "100")
        patch.chdir(directory)
        pictures = write_pictures(directory / "pictures.parquet", 60)
        config = picture_config(pictures, [{"class_path": "Rotation"}])
        config["model"]["init_args"]["encoder"] = ENCODER
        fit(directory, "rotated", config)
        tuning = picture_config(pictures, [], test_path=str(pictures), test_split="train", batch_size=4)
        tuning["model"] = {"class_path": "FineTuning", "init_args": {"init_from": "rotated:best"}}
        for seed, name in enumerate(NAMES.values()):
            fit(directory, name, tuning, "--seed_everything", str(seed))
            assert main(["test", "--ckpt_path", f"{find_run(name).directory}:best"]) == 0
        fit(directory, "elsewhere", tuning, "--data.validation_share", "0.4", "--model.dropout", "0.1")
        fit(directory, "texts", small_config(write_corpus(directory / "corpus.jsonl")))
        yield directory


def test_groups_lineage_and_cost(home, monkeypatch, capsys):
    assert main(["compare", "--experiment", "shown", "--json", "all.json"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    told = json.loads(Path("all.json").read_text())
    rows = [[row["name"] for row in group["rows"]] for group in told["groups"]]
    assert [len(group) for group in rows] == [1, 1, 1, 1]
    (seeds, *others) = (group["rows"][0] for group in told["groups"])
    assert seeds["seeds"] == ["0", "1"] and seeds["low"] < seeds["mean"] < seeds["high"]
    assert {run["name"] for run in seeds["runs"]} == set(NAMES.values())
    for run in seeds["runs"]:
        assert run["figure"]["metric"] == "validation/accuracy" and run["figure"]["step"] in (2, 4)
        (test,) = run["beside"]
        assert test["protocol"]["split"] == "test" and test["protocol"]["samples"] == "60"
        assert run["lineage"] == f"from rotated (step {run['lineage'].partition('step ')[2][0]}), from scratch"
        # Four steps of four pictures, and those of the pretraining by eight.
        assert run["cost"]["samples"] == 16 and run["cost_with_lineage"]["samples"] == 16 + 32
        assert run["cost"]["petaflops"] > 0 and run["cost"]["minutes"] > 0
    why = {row["name"]: group["why_apart"] for row, group in zip(others, told["groups"][1:], strict=True)}
    assert why["elsewhere"] == "samples 24, not 12" and "validation/loss" in why["texts"]
    assert "test/" in out and "(2 seeds)" in out and "Not ranked with the first: samples 24, not 12." in out
    # A narrow terminal folds names and leaves no column out.
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["compare", "--experiment", "shown"]) == 0
    out = capsys.readouterr().out
    costs = [run["cost"]["petaflops"] for group in told["groups"] for run in group["rows"][0]["runs"][:1]]
    assert out.count("PFLOP") == 4 and "minutes" in out and all(f"{cost:.3g}" in out for cost in costs)


def test_the_page_in_a_browser(home, tmp_path, capsys):
    assert main(["compare", "--experiment", "shown", "--html", str(tmp_path / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    # By itself: nothing is fetched, and what runs are called is text.
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|@import|url\((?!#)|<script", text)
    assert "<b>bold" not in text and "&lt;b&gt;bold" in text
    shown, console = open_page(tmp_path / "page.html", tmp_path / "profile")
    assert console == []
    assert shown.count('<section id="group-') == 4 and shown.count("<svg") >= 3 * 8
    for words in ("over optimiser steps", "over samples", "over petaFLOPs", "test/accuracy", "Not ranked with"):
        assert words in shown


def sections(text: str) -> list[str]:
    """Names of a page's parts."""
    return re.findall(r'<section id="([\w-]+)"', text)


def test_the_page_of_a_run_in_a_browser(home, tmp_path, capsys):
    name = NAMES["a"]
    run = find_run(name, with_checkpoints=True)
    assert main(["report", name]) == 0
    page = run.directory / "report.html"
    assert page.name in capsys.readouterr().out
    text = page.read_text()
    assert "<b>bold" not in text and not re.search(r"(?:src|href)=\"(?!data:|#)|<script", text)
    shown, console = open_page(page, tmp_path / "profile", width=400)
    assert console == []
    (measured,) = (part for part in sections(shown) if part.startswith("measured-"))
    expected = ["lineage", "figures", "curves", "speed", measured, "data", "settings", "next"]
    assert sections(shown) == expected
    # Scratch, the pretraining and itself; confusion and calibration of the test, and its mistakes.
    assert shown.count('class="box') == 3 and shown.count('src="data:image/png;base64,') == 3
    for words in ("By class", "test/accuracy", "public weights", "60 samples", "over samples", "Begun "):
        assert (words in shown) == (words != "public weights"), words
    # Its test is called as it is, so it is called by its id.
    assert f"python -m lit_pretrain predict --ckpt_path {run.run_id[:8]}:best --data.path new_pictures/" in shown
    assert "python -m lit_pretrain report rotated" in shown


def test_pages_of_pretrainings_show_what_was_filled_in(home, tmp_path):
    for name, parts, words in (
        ("texts", {"examples"}, ["masked language modeling, step 4", "evaluate texts:best --config configs/finetune"]),
        ("rotated", {"panels"}, ["fine-tune it", "--model.init_from rotated:best", NAMES["b"], "elsewhere"]),
    ):
        assert main(["report", name, "--output", str(tmp_path / f"{name}.html")]) == 0
        text = (tmp_path / f"{name}.html").read_text()
        assert parts < set(sections(text)), sections(text)
        assert all(word in text for word in words)


def test_mistakes_are_one_sentence(home, capsys):
    for arguments, sentence in (
        (["nonesuch"], "is called 'nonesuch'"),
        (["shown"], "is called 'shown', which is an experiment: name one of its runs, or put"),
        (["texts", "--metric", "accuracyy"], "None of these runs has the figure 'accuracyy'"),
        (["texts", "--html", "no/such/place.html"], "give another file to --html"),
        (["--where", "params.x ~ 3"], "is not understood"),
    ):
        assert main(["compare", *arguments]) == 2
        told = capsys.readouterr().err
        assert sentence in told and told.count("\n") == 1
    assert main(["report", "nonesuch"]) == main(["report", "texts", "--output", "no/place.html"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
