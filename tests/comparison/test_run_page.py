"""The page of a run where something is missing, wrong or large; curves and charts by hand."""

import json
import math
import re

import numpy
import pytest
from logged_runs import log_measurement, log_run
from PIL import Image

from lit_pretrain.comparison.charts import Curve, limits, line_chart, thinned, tick_label, ticks
from lit_pretrain.comparison.curves import amount_by_step
from lit_pretrain.comparison.run_files import Budget
from lit_pretrain.comparison.run_page import run_page
from lit_pretrain.comparison.runs import RunStore
from lit_pretrain.tracking.find import RunRecord
from lit_pretrain.tracking.store import open_store


@pytest.fixture
def client(tmp_path):
    return open_store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


def page(client, run_id, records=()):
    store = RunStore(client)
    return run_page(store.run(run_id), store, records)


def test_faults_and_resumptions_are_told(client, tmp_path):
    tags = {"failure": "OSError: <disk> is full", "resumed": "11", "resumed.data.batch_size": "64"}
    failed = log_run(client, "failed", tags=tags, status="FAILED")
    directory = tmp_path / "failed"
    directory.mkdir()
    (directory / "unsent.jsonl").write_text("{}\n")
    text = page(client, failed, [RunRecord(failed, "tuned", "", "failed", directory)])
    for words in (
        "The run failed: OSError: &lt;disk&gt; is full.",
        "gone on with 11 times",
        "unsent.jsonl",
        "<td>64</td>",
    ):
        assert words in text
    assert "python -m lit_pretrain fit --ckpt_path failed" in text
    assert 'id="faults"' not in page(client, log_run(client, "fine"))
    assert "killed without a word" in page(client, log_run(client, "begun", curves={}, status="RUNNING"))


def test_commands_take_a_file_that_is_made_of_shards(client, tmp_path):
    shards, file = tmp_path / "best.ckpt", tmp_path / "best-whole.ckpt"
    shards.mkdir()
    (shards / "meta.pt").touch()
    text = page(client, log_run(client, "sharded", tags={"checkpoint.best": str(shards)}))
    assert f"python -m lightning.fabric.utilities.consolidate_checkpoint {shards} --output_file {file}" in text
    assert f"export --ckpt {file} " in text and "sharded:best" not in text


def test_figures_stand_beside_their_chance(client):
    curves = {f"best/validation/{name}": {5: 0.25} for name in ("accuracy", "rank")}
    known = {"accuracy": 0.125, "validation/accuracy": 0.5}
    run = log_run(client, "guessed", curves=curves, tags={"chance": json.dumps(known)})
    text = page(client, run)
    assert re.search(r"validation/<wbr>accuracy</td><td[^>]*>0.25</td><td[^>]*>5</td><td[^>]*>0.5</td>", text)
    assert re.search(r"validation/<wbr>rank</td><td[^>]*>0.25</td><td[^>]*>5</td><td[^>]*>–</td>", text)
    # Minutes of a training of seconds say something.
    client.log_metric(run, "throughput/total_hours", 0.0005)
    assert "<b>0.03</b><span>minutes</span>" in page(client, run)
    stopped = page(client, log_run(client, "stopped", status="KILLED"))
    assert "The run was stopped by a person or the system before its end." in stopped


def test_a_run_without_a_directory_shows_what_the_store_has(client, tmp_path):
    run = log_run(client, "far", curves={"validation/probe/knn_accuracy/block_1": {5: 0.25}})
    tested = log_measurement(
        client, run, {"evaluate/linear_accuracy/block_1": 0.5, "evaluate/linear_accuracy/block_2": 0.75}
    )
    (tmp_path / "classes.json").write_text('{"columns": ["class", "f1"], "data": [["<i>", NaN], ["b", 0.5]]}')
    (tmp_path / "mistakes.json").write_text("spoilt")
    for name in ("classes", "mistakes"):
        client.log_artifact(tested, str(tmp_path / f"{name}.json"), "report")
    text = page(client, run)
    assert "<td>&lt;i&gt;</td>" in text and "The worst mistakes" not in text
    assert text.count('<polyline class="line c0"') == 1 and "linear_accuracy" in text
    (depth,) = re.findall(r'<section id="depth">.*?</section>', text, re.DOTALL)
    assert "0.75" in depth and "0.25" in depth


def test_pictures_are_bounded(tmp_path):
    noise = numpy.random.default_rng(0).integers(0, 255, (1200, 1800, 3), dtype="uint8")
    Image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "spoilt.png").write_bytes(b"no picture")
    budget = Budget(3_000_000)
    assert 'width="1000" height="667"' in budget.picture(tmp_path / "large.png", 'a "panel"')
    assert budget.picture(tmp_path / "large.png", "again") == budget.picture(tmp_path / "spoilt.png", "") == ""
    assert budget.left_out == ["large.png", "spoilt.png (cannot be read)"] and 0 < budget.left < 3_000_000


def test_amounts_between_the_steps_at_which_they_were_logged():
    amount = amount_by_step([(10, 100.0), (20, 300.0)])
    assert [amount(step) for step in (0, 5, 10, 15, 20, 25)] == [0, 50, 100, 200, 300, 400]
    assert amount_by_step([]) is None


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0.81, 0.87, ["0.82", "0.84", "0.86"]),
        (0, 4200, ["0", "1k", "2k", "3k", "4k"]),
    ],
)
def test_axes_have_round_numbers(low, high, labels):
    found = ticks(low, high)
    assert [tick_label(value, found[1] - found[0]) for value in found] == labels
    assert ticks(3.0, 3.0) == [3.0] and tick_label(2e-5, 1e-5) == "2.0e-5"


def test_charts_keep_peaks_and_leave_out_what_is_no_number():
    points = [(float(step), math.sin(step)) for step in range(5000)]
    points[3210] = (3210.0, 9.0)
    points[77] = (77.0, math.nan)
    kept = thinned(points)
    assert len(kept) <= 240 and (3210.0, 9.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    drawn = line_chart([Curve("<loss>", points)], "t", "steps")
    assert "nan" not in drawn and "&lt;loss&gt;" in drawn and "<loss>" not in drawn
    assert "Nothing was logged" in line_chart([Curve("none", [(1.0, math.inf)])], "t", "steps")
    # A single value still has room around it.
    assert limits([2.0]) == (1.9, 2.1) and limits([0.0, 0.0]) == (0.0, 1.0)
    assert line_chart([Curve("one", [(0.0, 5.0)])], "t", "steps").count("<circle") == 1
