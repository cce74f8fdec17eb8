"""`evaluate` on checkpoints that a training has just written: numbers by scikit-learn, panels, mistakes."""

import csv
import json

import numpy
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from small_pictures import COLORS, draw, make_pictures, picture_config, write_pictures
from small_training import small_config, training_of, write_config
from text_corpus import SUBJECTS, write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.modules.checkpoints import load_encoder


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory):
    """One store for all, since making one takes seconds."""
    directory = tmp_path_factory.mktemp("evaluate") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("COLUMNS", "200")
        yield directory


def trained(runs, name, config):
    """A checkpoint of a training of two steps."""
    file = write_config(runs.parent / f"{name}.yaml", config)
    assert main(["fit", "--config", str(file), "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]) == 0
    (checkpoint,) = runs.glob(f"small/{name}-*/checkpoints/last.ckpt")
    return checkpoint


@pytest.fixture(scope="module")
def pictures(runs):
    config = picture_config(write_pictures(runs.parent / "pictures.parquet"), [{"class_path": "Rotation"}])
    config["model"]["init_args"]["encoder"]["init_args"]["transformer"]["depth"] = 3
    write_pictures(runs.parent / "test.parquet", 45, seed=1)
    return trained(runs, "pictures", config)


@pytest.fixture(scope="module")
def texts(runs):
    """A checkpoint, and texts by who does something, with a number each."""
    checkpoint = trained(runs, "texts", small_config(write_corpus(runs.parent / "corpus.jsonl")))
    generator = numpy.random.default_rng(0)
    for name, count in (("labelled", 72), ("test", 30)):
        with (runs.parent / f"{name}.jsonl").open("w") as file:
            for place in range(count):
                who = SUBJECTS[place % len(SUBJECTS)]
                text = f"{who} {generator.choice(['pays', 'builds the schools', 'remembers peace'])}."
                file.write(json.dumps({"text": text, "label": who, "words": float(len(text.split()))}) + "\n")
    return checkpoint


def text_data(checkpoint, **settings):
    directory = checkpoint.parents[4]
    given = {"path": directory / "labelled.jsonl", "maximum_length": 32} | settings
    return ["--data", "LabelledDataModule", *(part for key in given for part in (f"--data.{key}", str(given[key])))]


def test_accuracies_are_those_of_scikit_learn_and_the_run_is_logged(pictures, runs, tmp_path, capsys):
    from mlflow.tracking import MlflowClient
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    directory, file = pictures.parents[4], tmp_path / "rows.json"
    test = ["--data.test_path", str(directory / "test.parquet")]
    assert main(["evaluate", str(pictures), *test, "--layers", "1,3", "--json", str(file)]) == 0
    rows = {(row["protocol"], row["layer"]): row for row in json.loads(file.read_text())}
    assert list(rows) == [("knn", 1), ("linear", 1), ("knn", 3), ("linear", 3)]

    encoder, _ = load_encoder(str(pictures), VisionEncoder)
    data = make_pictures(directory / "pictures.parquet", tmp_path / "own")
    (train, labels), (given, truth) = (
        data.labelled_arrays("train"),
        make_pictures(directory / "test.parquet", tmp_path / "own", validation_share=0.0).labelled_arrays("train"),
    )

    def features(images, depth):
        tokens = encoder.embeddings((torch.from_numpy(images).float() / 255 - encoder.mean) / encoder.std)
        for block in encoder.transformer.blocks[:depth]:
            tokens = block(tokens)
        tokens = encoder.transformer.final_norm(tokens) if depth == 3 else tokens
        return tokens.mean(dim=1).double().numpy()

    encoder.eval().requires_grad_(False)
    for depth in (1, 3):
        known, asked = features(train, depth), features(given, depth)
        near = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: numpy.exp((1 - distance) / 0.07))
        scaler = StandardScaler().fit(known)
        linear = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(known), labels)
        assert rows["knn", depth]["mean"] == pytest.approx(near.fit(known, labels).score(asked, truth))
        assert rows["linear", depth]["mean"] == pytest.approx(linear.score(scaler.transform(asked), truth), abs=1 / 45)
    told = rows["linear", 3]
    expected = {"train_samples": 96, "stage": "test", "stage_samples": 45, "step": 2, "layers": 3, "seeds": []}
    expected |= {"resolution": "16 px", "pooling": "mean", "metric": "accuracy", "interval": None}
    assert expected.items() <= told.items()

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    logged = client.search_runs([client.get_experiment_by_name("evaluation").experiment_id])
    (run,) = [one for one in logged if one.data.metrics]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluate/linear_accuracy/block_3"] == told["mean"]
    assert run.data.tags["source.run_id"] == told["run_id"] and run.data.tags["source.checkpoint"] == str(pictures)
    used = {tag.value: one.dataset for one in run.inputs.dataset_inputs for tag in one.tags}
    assert {context: data.name for context, data in used.items()} == {
        "training": "pictures.parquet:training[96]",
        "test": "test.parquet:test[45]",
    }
    assert used["training"].digest != used["test"].digest
    # A search leaves models out.
    model = client.get_logged_model(client.get_run(run.info.run_id).inputs.model_inputs[0].model_id)
    assert (model.source_run_id, model.params["step"]) == (told["run_id"], "2")
    figures = {one.key: (one.value, one.dataset_name) for one in model.metrics}
    assert figures["evaluate/linear_accuracy/block_3"] == (told["mean"], "test.parquet:test[45]")
    note = run.data.tags["mlflow.note.content"]
    assert "**Evaluate of VisionEncoder" in note and "45 for test" in note
    assert f"evaluate/linear_accuracy/block_3 {told['mean']:.4g} at step 2" in note
    printed = capsys.readouterr().out
    assert "45 samples of test" in printed and f"{100 * told['mean']:.2f} %" in printed


def test_few_labels_several_seeds_and_fresh_weights(pictures, runs, tmp_path, capsys):
    before, file = sorted(runs.glob("evaluation/*")), tmp_path / "rows.json"
    command = ["evaluate", str(pictures), "--protocol", "linear", "--layers", "last", "--random", "--no-log"]
    assert main([*command, "--train-samples", "6", "all", "--seeds", "0", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["checkpoint"], row["train_samples"], row["seeds"]) for row in rows] == [
        (pictures.parents[1].name.rpartition("-")[0], 6, [0, 1]),
        (pictures.parents[1].name.rpartition("-")[0], 96, []),
        ("fresh weights", 6, [0, 1]),
        ("fresh weights", 96, [0, 1]),
    ]
    assert all(len(row["values"]) == max(1, len(row["seeds"])) and row["stage"] == "validation" for row in rows)
    assert sorted(runs.glob("evaluation/*")) == before
    said = capsys.readouterr()
    assert "no test part: its validation part" in said.err and "±" in said.out


def test_neighbours_of_samples_and_of_a_file_as_a_panel(pictures, runs, tmp_path):
    directory = pictures.parents[4]
    own = tmp_path / "own.png"
    Image.new("RGB", (40, 30), COLORS["sea"]).save(own)
    command = ["evaluate", str(pictures), "--query", "3", str(own), "--neighbors", "5", "--layers", "2"]
    # The training pictures themselves are asked for, so the nearest of a sample is itself.
    same = ["--data.test_path", str(directory / "pictures.parquet"), "--data.validation_share", "0"]
    assert main([*command, *same, "--output", str(tmp_path)]) == 0
    (table,), (panel,) = tmp_path.glob("neighbors-*-block_2.csv"), tmp_path.glob("neighbors-*-block_2.png")
    rows = list(csv.DictReader(table.open()))
    assert [row["query"] for row in rows] == ["test 3"] * 5 + ["own.png"] * 5
    assert rows[0]["sample_id"] == "3" and float(rows[0]["cosine"]) == pytest.approx(1, abs=1e-5)
    assert rows[0]["label"] == rows[0]["query_label"] == "apple" and rows[5]["query_label"] == ""
    cosines = [float(row["cosine"]) for row in rows[:5]]
    assert cosines == sorted(cosines, reverse=True)
    colors = {color for _, color in Image.open(panel).getcolors(1_000_000)}
    assert (0, 158, 115) in colors
    # The panel is in the run too, as a chart.
    assert len(list(runs.glob("evaluation/*/images/neighbors~block_2*.png"))) == 1


def test_texts_by_class_and_by_number(texts, tmp_path, capsys):
    file = tmp_path / "rows.json"
    test = {"test_path": texts.parents[4] / "test.jsonl"}
    command = ["evaluate", str(texts), "--no-log", "--json", str(file)]
    assert main([*command, *text_data(texts, **test)]) == 0
    rows = {row["protocol"]: row for row in json.loads(file.read_text())}
    # Who does it is a word of the text: even hardly trained embeddings tell.
    assert rows["linear"]["mean"] > 0.9 and rows["linear"]["resolution"] == "32 tokens"
    assert rows["linear"]["train_samples"] == 68 and rows["linear"]["stage_samples"] == 30

    assert main([*command, *text_data(texts, label_column="words", **test)]) == 0
    rows = {(row["protocol"], row["metric"]): row["mean"] for row in json.loads(file.read_text())}
    assert set(rows) == {(one, other) for one in ("knn", "linear") for other in ("pearson", "spearman")}
    assert rows["linear", "pearson"] > 0.8
    assert "ridge regression" in capsys.readouterr().out

    asked = ["--query", "the army pays.", "--neighbors", "3", "--output", str(tmp_path)]
    assert main([*command, *asked, *text_data(texts, **test)]) == 0
    found = json.loads(file.read_text())
    assert [row["text"] for row in found] == ["the army pays."] * 3 and found[0]["label"] == "the army"
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert "the army pays." in capsys.readouterr().out


def test_encoders_with_other_tokenizers_are_measured_on_the_same_samples(texts, runs, tmp_path):
    """Each run's own data would put figures of different samples into one table."""
    other = trained(runs, "other", small_config(runs.parent / "corpus.jsonl", vocabulary_size=70))
    fine_tuned = []
    for name, start, data in (("first", texts, "labelled"), ("second", other, "test")):
        model = {"class_path": "FineTuning", "init_args": {"init_from": str(start)}}
        settings = {"path": str(runs.parent / f"{data}.jsonl"), "maximum_length": 32, "batch_size": 8}
        config = training_of(model, {"class_path": "LabelledDataModule", "init_args": settings})
        fine_tuned.append(trained(runs, name, config))
    file = tmp_path / "rows.json"
    command = ["evaluate", *map(str, fine_tuned), "--protocol", "knn", "--train-samples", "9", "all", "--no-log"]
    assert main([*command, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["checkpoint"][:5], row["train_samples"], row["stage_samples"]) for row in rows] == [
        (name, count, 4) for name in ("first", "secon") for count in (9, 68)
    ]


def test_pictures_of_another_size_are_seen_whole(pictures, runs, tmp_path):
    """An encoder of 16 pixels looks at all of 64-pixel pictures, not at a sixteenth of their area."""
    generator = numpy.random.default_rng(0)
    for name, size in (("small", 16), ("large", 64)):
        images = [draw(place % 3, generator).resize((size, size), Image.Resampling.NEAREST) for place in range(60)]
        generator = numpy.random.default_rng(0)
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(COLORS))})
        rows = {"image": images, "label": [place % 3 for place in range(60)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{name}.parquet"))
    found = {}
    for name in ("small", "large"):
        path = ["--data.path", str(tmp_path / f"{name}.parquet"), "--data.label_column", "label"]
        command = ["evaluate", str(pictures), "--data", "ImageDataModule", *path, "--protocol", "neighbors"]
        assert main([*command, "--no-log", "--output", str(tmp_path)]) == 0
        (table,) = tmp_path.glob("neighbors-*-block_3.csv")
        found[name] = {(row["query"], row["sample_id"]): float(row["cosine"]) for row in csv.DictReader(table.open())}
    both = found["small"].keys() & found["large"].keys()
    assert len(both) > 0.8 * len(found["small"])
    assert [found["large"][pair] for pair in both] == pytest.approx([found["small"][pair] for pair in both], abs=0.02)


def test_spoilt_weights_stop_with_a_sentence(pictures, tmp_path, capsys):
    checkpoint = torch.load(pictures, weights_only=True)
    checkpoint["state_dict"]["encoder.transformer.final_norm.weight"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "spoilt.ckpt")
    config, file = ["--config", str(pictures.parents[1] / "config.yaml")], tmp_path / "rows.json"
    assert main(["evaluate", str(tmp_path / "spoilt.ckpt"), *config, "--no-log", "--json", str(file)]) == 2
    assert "NaN (1 of " in capsys.readouterr().err and not file.exists()


def test_mistakes_get_one_sentence(pictures, texts, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    other = tmp_path / "vocabulary"
    other.mkdir()
    (other / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    for arguments, sentence in (
        ([str(pictures), "--layers", "4"], "no block 4 in an encoder of 3"),
        ([str(pictures), "--layers", "first"], "--layers is 'first': give three, all, last, or numbers"),
        ([str(pictures), "--pooling", "cls"], "has no class token"),
        ([str(pictures), str(texts)], "evaluate them one after the other"),
        ([str(pictures), *text_data(texts)], "reads pictures, and the LabelledDataModule holds text"),
        ([str(texts)], "DocumentDataModule, whose documents have no labels"),
        ([str(texts), *text_data(texts, maximum_length=64)], "reads 32 tokens at most"),
        ([str(texts), *text_data(texts, tokenizer=other)], "set data.tokenizer to null"),
        ([str(pictures), "--data.label_column", "null"], "no labels to measure by"),
        ([str(pictures), "--data.batch_sise", "8"], "did you mean 'batch_size'?"),
        ([str(pictures), "--data.batch_size"], "has no value"),
        ([str(pictures), "--stage", "test"], "no test part"),
        ([str(pictures), "--train-samples", "2"], "fewer than the 3 classes"),
        ([str(pictures), "--query", "9999"], "has no sample 9999"),
        ([str(pictures), "--query", "nowhere.png"], "neither a sample id nor a picture file"),
        ([str(pictures), "--query", str(broken)], "no picture that Pillow knows"),
        (["no_such_run"], "is called 'no_such_run'"),
    ):
        assert main(["evaluate", *arguments, "--no-log"]) == 2, arguments
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence in said and said.startswith("lit_pretrain: "), said
