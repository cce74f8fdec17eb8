"""A contrastive run through the real entry: judged by recall and zero-shot, and used to embed, search and classify."""

import json

import mlflow
import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from registered_models import check_registered
from small_pairs import pair_config, write_pairs, write_tokenizer
from small_pictures import COLORS, write_pictures
from small_training import write_config

from lit_pretrain.__main__ import main
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.precision import hardware_bf16
from lit_pretrain.tracking.find import find_checkpoint

TEMPLATES = ["a {}", "this is {}"]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """One directory with a run, pairs, labelled pictures, a folder of pictures and a file of captions."""
    directory = tmp_path_factory.mktemp("contrastive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("COLUMNS", "200")
        write_pictures(directory / "labelled.parquet", 48, seed=5)
        (directory / "folder").mkdir()
        for name, color in COLORS.items():
            for size in (24, 32):
                shade = tuple(value * 24 // size for value in color)
                Image.new("RGB", (size, 24), shade).save(directory / "folder" / f"{name}-{size}.png")
        (directory / "captions.txt").write_text("this is apple\n\nthis is leaf\nthis is sea\n")
        labelled = {"path": str(directory / "labelled.parquet"), "image_column": "image", "label_column": "label"}
        callbacks = [
            {
                "class_path": "ZeroShot",
                "init_args": {
                    "data": {"class_path": "LabelledDataModule", "init_args": labelled},
                    "templates": TEMPLATES,
                    "pictures": 40,
                },
            },
            {
                "class_path": "OnlineProbe",
                "init_args": {
                    "data": {"class_path": "LabelledDataModule", "init_args": labelled | {"validation_share": 0.3}},
                    "every_n_validations": 2,
                },
            },
        ]
        config = pair_config(
            write_pairs(directory / "pairs.parquet"),
            trainer={"max_steps": 60, "val_check_interval": 20, "callbacks": callbacks},
            model={"optimizer": {"learning_rate": 3e-3}},
            tokenizer=write_tokenizer(directory / "tokenizer"),
        )
        config["trainer"]["logger"]["init_args"]["run_name"] = "colors"
        assert main(["fit", "--config", str(write_config(directory / "colors.yaml", config))]) == 0
        yield directory


@pytest.fixture(scope="module")
def module(place):
    return ContrastivePretraining.from_checkpoint(find_checkpoint("colors"))


def run_of(place, experiment):
    client = mlflow.MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    (run, *_) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def told(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_training_is_judged_by_recall_and_by_what_it_was_never_taught(place):
    client, run = run_of(place, "small")
    metrics = run.data.metrics
    assert metrics["zero_shot/accuracy"] > 0.8 and metrics["zero_shot/chance"] == pytest.approx(1 / 3)
    assert "zero_shot/top5_accuracy" not in metrics
    assert len(client.get_metric_history(run.info.run_id, "zero_shot/accuracy")) == 3
    for kind in ("knn", "linear"):
        assert metrics[f"probe/{kind}_accuracy/block_2"] > 0.6
        assert len(client.get_metric_history(run.info.run_id, f"probe/{kind}_accuracy/block_2")) == 1

    history = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "validation/mean_recall")}
    recalls = [metrics[f"validation/{way}/recall_at_{cut}"] for way in WAYS for cut in (1, 5, 10)]
    assert history[60] == pytest.approx(numpy.mean(recalls)) and metrics["best/validation/mean_recall"] > 0
    best = max(history, key=history.get)
    assert find_checkpoint("colors:best").name == f"best-step={best:06d}.ckpt"


WAYS = ("text_to_picture", "picture_to_text")


def test_predict_embeds_pictures_or_texts_alone(place, module):
    assert main(["predict", "--ckpt_path", "colors", "--data.path", str(place / "folder")]) == 0
    pictures = latest_predictions(place)
    names = [name.rpartition("/")[2] for name in pictures.column("image").to_pylist()]
    assert sorted(names) == sorted(f"{name}-{size}.png" for name in COLORS for size in (24, 32))
    assert main(["predict", "--ckpt_path", "colors", "--data.path", str(place / "captions.txt")]) == 0
    texts = latest_predictions(place)
    assert texts.column("text").to_pylist() == ["this is apple", "", "this is leaf", "this is sea"]

    embedder = PairEmbedder(module)
    assert (embedder.maximum_length, embedder.stored_size) == (16, 16)
    expected = embedder.embed_texts(embedder.encode(texts.column("text").to_pylist()))
    torch.testing.assert_close(embeddings_of(texts), expected)
    apple = torch.tensor(COLORS["apple"], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 16, 16)
    row = names.index("apple-24.png")
    torch.testing.assert_close(embeddings_of(pictures)[row : row + 1], embedder.embed_pictures([apple]))

    # And so does what is registered.
    rows = {"image": [(place / "folder" / name).read_bytes() for name in names]}
    check_registered(place / "runs", "colors", rows, pictures.to_pydict(), "--tower", "image")
    rows = {"text": ["this is apple", None, "this is leaf", "this is sea"]}
    check_registered(place / "runs", "colors:text", rows, texts.to_pydict())

    # And of the training's own source, as it was.
    assert main(["predict", "--ckpt_path", "colors"]) == 0
    assert len(latest_predictions(place)) == 60


def latest_predictions(place):
    files = sorted(place.glob("runs/small/*/predictions.parquet"), key=lambda path: path.stat().st_mtime_ns)
    return pyarrow.parquet.read_table(files[-1])


def embeddings_of(table):
    return torch.tensor(table.column("embedding").to_pylist())


def test_search_finds_pictures_for_texts_and_texts_for_pictures(place, tmp_path, capsys):
    rows, sheet = tmp_path / "rows.json", tmp_path / "sheet.png"
    (tmp_path / "folder").symlink_to(place / "folder")
    broken = place / "folder" / "broken.png"
    broken.write_bytes(b"no picture")
    command = ["search", "--ckpt", "colors", "--json", str(rows)]
    folder = ["--images", str(tmp_path / "folder")]
    try:
        assert (
            main([*command, *folder, "--query", "a leaf", "--query", "a sea", "--top", "2", "--sheet", str(sheet)]) == 0
        )
    finally:
        broken.unlink()
    said = capsys.readouterr()
    assert "1 of 7 pictures cannot be read" in said.err and "broken.png: it is no picture" in said.err
    found = json.loads(rows.read_text())
    assert [row["picture"].rpartition("/")[2].partition("-")[0] for row in found] == ["leaf", "leaf", "sea", "sea"]
    assert [row["rank"] for row in found] == [1, 2, 1, 2] and found[0]["score"] >= found[1]["score"]
    assert found[0]["picture"] in said.out and f"{found[0]['score']:.3f}" in said.out
    colors = {color for _, color in Image.open(sheet).convert("RGB").getcolors(1_000_000)}
    assert COLORS["leaf"] in colors and COLORS["sea"] in colors and COLORS["apple"] not in colors

    # What predict has embedded gives the same, and no other checkpoint searches it.
    assert main(["predict", "--ckpt_path", "colors", "--data.path", str(place / "folder")]) == 0
    (file, *_) = sorted(place.glob("runs/small/*/predictions.parquet"), key=lambda path: -path.stat().st_mtime_ns)
    assert main([*command, "--embeddings", str(file), "--query", "a leaf", "--top", "2", "--sheet", str(sheet)]) == 0
    again = json.loads(rows.read_text())
    # In bf16, batches of other sizes are rounded otherwise.
    rounding = 5e-3 if hardware_bf16() else 1e-5
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in found[:2]], abs=rounding)
    assert COLORS["leaf"] in {color for _, color in Image.open(sheet).convert("RGB").getcolors(1_000_000)}
    capsys.readouterr()
    other = [*command[:2], str(earlier_checkpoint(tmp_path)), "--embeddings", str(file), "--query", "leaf"]
    assert main(other) == 2
    assert "whose weights" in (sentence := told(capsys)) and "embed it again by predict" in sentence

    picture = ["--query-image", str(place / "folder" / "apple-24.png")]
    assert main([*command, "--captions", str(place / "captions.txt"), *picture, "--sheet", str(sheet)]) == 0
    assert "1 of 4 texts are empty" in capsys.readouterr().err
    found = json.loads(rows.read_text())
    assert [row["text"] for row in found][0] == "this is apple" and len(found) == 3
    assert found[0]["query_kind"] == "picture" and COLORS["apple"] in {
        color for _, color in Image.open(sheet).convert("RGB").getcolors(1_000_000)
    }
    assert main([*command, *folder, *picture, "--top", "1"]) == 0
    (same,) = json.loads(rows.read_text())
    assert same["picture"].endswith("apple-24.png") and same["score"] == pytest.approx(1.0, abs=1e-5)

    # Without anything else, what was trained on.
    assert main([*command, "--query", "a sea", "--top", "5"]) == 0
    assert all("sea" in row["picture"] for row in json.loads(rows.read_text()))


def earlier_checkpoint(directory):
    """Another checkpoint: the same with other weights."""
    checkpoint = torch.load(find_checkpoint("colors"), weights_only=True)
    checkpoint["state_dict"]["text_tower.projection.weight"] += 0.1
    torch.save(checkpoint, directory / "other.ckpt")
    return directory / "other.ckpt"


def test_evaluate_measures_both_towers_and_zero_shot(place, tmp_path, capsys):
    rows = tmp_path / "rows.json"
    pictures = ["--data.path", str(place / "labelled.parquet"), "--data.label_column", "label"]
    (tmp_path / "names.yaml").write_text("apple: [apple]\nsea: sea\n")
    named = ["--templates", *TEMPLATES, "--class-names", str(tmp_path / "names.yaml")]
    assert main(["evaluate", "colors", *pictures, *named, "--json", str(rows)]) == 0
    whole, *classes = json.loads(rows.read_text())
    assert (whole["stage"], whole["stage_samples"], whole["templates"]) == ("all", 48, TEMPLATES)
    assert whole["low"] < whole["mean"] < whole["high"] or whole["mean"] == 1.0
    assert whole["chance"] == whole["most_frequent"] == pytest.approx(1 / 3)
    assert [(row["class"], row["samples"]) for row in classes] == [(name, 16) for name in COLORS]
    assert sum(row["recall"] * 16 for row in classes) / 48 == pytest.approx(whole["mean"], abs=1e-3)
    printed = capsys.readouterr().out
    assert f"{100 * whole['mean']:.1f} %" in printed and "33.3 %" in printed
    client, run = run_of(place, "evaluation")
    assert run.data.metrics["evaluate/zero_shot_accuracy"] == whole["mean"] and run.info.status == "FINISHED"
    assert run.data.metrics["evaluate/zero_shot_accuracy/low"] == pytest.approx(whole["low"])
    assert "zero_shot.json" in {one.path for one in client.list_artifacts(run.info.run_id)}

    command = ["evaluate", "colors:best:vision", *pictures, "--no-log", "--layers", "last", "--json", str(rows)]
    assert main([*command, "--protocol", "knn", "linear", "zero-shot", "--random"]) == 0
    found = [
        (row["checkpoint"], row["protocol"]) for row in json.loads(rows.read_text()) if row["metric"] == "accuracy"
    ]
    fresh = [("fresh weights", "knn"), ("fresh weights", "linear")]
    assert found == [("colors", "knn"), ("colors", "linear"), *fresh, ("colors", "zero-shot")]
    own = ["--query", str(place / "folder" / "sea-32.png"), "--neighbors", "3", "--output", str(tmp_path)]
    assert main([*command, *own]) == 0
    assert {row["label"] for row in json.loads(rows.read_text())} == {"sea"}

    with (tmp_path / "texts.jsonl").open("w") as file:
        for place_of in range(60):
            name = list(COLORS)[place_of % 3]
            file.write(json.dumps({"text": f"some {name} number {place_of}", "label": name}) + "\n")
    texts = ["--data.path", str(tmp_path / "texts.jsonl"), "--data.validation_share", "0.3"]
    assert main(["evaluate", "colors:text", *texts, "--no-log", "--json", str(rows)]) == 0
    assert {row["resolution"] for row in json.loads(rows.read_text())} == {"16 tokens"}
    assert max(row["mean"] for row in json.loads(rows.read_text())) > 0.9


def test_a_tower_can_be_started_from(module):
    for tower in ("text", "vision"):
        start = load_starting_point(f"colors:{tower}")
        encoder = module.towers[tower].encoder
        assert all(torch.equal(one, encoder.state_dict()[name]) for name, one in start.encoder.state_dict().items())
        assert (start.tokenizer is not None) == (tower == "text")
        assert start.lineage["init_from_tower"] == tower and start.lineage["init_from_objectives"] == "Contrastive"


def test_mistakes_get_one_sentence(place, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a\n")
    (tmp_path / "table.csv").write_text("one,other\na,b\n")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    folder, query = ["--images", str(place / "folder")], ["--query", "leaf"]
    for arguments, sentence in (
        (["--ckpt", "colours", *query], "is called 'colours' (did you mean 'colors'?)"),
        (["--ckpt", "gone.ckpt", *query], "The checkpoint gone.ckpt does not exist"),
        ([*folder], "Nothing says what to look for"),
        ([*folder, "--query", "  "], "A --query is empty"),
        ([*folder, *query, "--top", "0"], "--top is 0: give at least 1"),
        ([*folder, *query, "--captions", "c.txt"], "--images and --captions are both given"),
        ([*folder, *query, "--column", "a"], "--column is a column of --captions"),
        ([*folder, *query, "--sheet", "sheet.doc"], "--sheet is sheet.doc, which is no name of a picture"),
        ([*folder, *query, "--sheet", str(tmp_path / "no" / "s.png")], "There is no directory"),
        (["--images", str(tmp_path / "empty"), *query], "which holds nothing: give --images a folder"),
        (["--images", str(tmp_path / "texts"), *query], "which holds .txt: give --images a folder"),
        (["--images", str(place / "foldr"), *query], "folder'?)"),
        ([*folder, "--query-image", "gone.png"], "The query gone.png: there is no such file"),
        (["--captions", "gone.txt", *query], "There is no file gone.txt"),
        (["--captions", str(tmp_path / "table.csv"), *query], "is not clear: give --column one or other"),
        (["--captions", str(tmp_path / "table.csv"), "--column", "on", *query], "did you mean 'one'?"),
        (["--embeddings", str(tmp_path / "other.parquet"), *query], "holds no embeddings of ContrastivePretraining"),
        (["--embeddings", str(place / "captions.txt"), *query], "cannot be read as parquet"),
    ):
        given = arguments if "--ckpt" in arguments else ["--ckpt", "colors", *arguments]
        assert main(["search", *given]) == 2, arguments
        assert sentence in (said := told(capsys)) and said.startswith("lit_pretrain: "), said
    for arguments, sentence in (
        (["evaluate", "colors"], "was trained on pairs, which have no classes: give labelled data"),
        (
            ["evaluate", "colors", "--config", str(place / "colors.yaml")],
            "colors.yaml are pairs, which have no classes",
        ),
        (["register", "colors", "--name", "colors"], "does one of them: give --tower text or --tower image"),
        (["register", "colors:text", "--name", "colors", "--tower", "image"], "colors:text name two towers"),
        (["evaluate", "colors:text", "--protocol", "zero-shot"], "zero-shot is measured on pictures"),
        (["evaluate", "colors", "--protocol", "knn", "--templates", "{}"], "--templates is for the protocol zero-shot"),
        (["predict", "--config", str(place / "colors.yaml")], "predict without a checkpoint would use towers"),
        (["predict", "--ckpt_path", "colors", "--data.path", str(tmp_path / "table.csv")], "--data.text_column COLUMN"),
        (
            ["fit", "--config", str(place / "colors.yaml"), "--model.text.init_from", "colors"],
            "takes either model.text",
        ),
    ):
        assert main(arguments) == 2, arguments
        assert sentence in (said := told(capsys)), said

    # A text that is too long, and words that nobody has learned, are told of.
    assert main(["search", "--ckpt", "colors", *folder, "--query", "leaf " * 30, "--query", "xyz"]) == 0
    said = capsys.readouterr().err
    assert "1 of 2 queries are longer than 16 tokens" in said and "knows nothing of the query 'xyz'" in said
