"""A training that is killed and gone on with equals one that never was, bit for bit, through the real entry point."""

import signal
import time
from functools import cache

import mlflow
import pytest
import torch
from datasets import Dataset
from small_pairs import make_rows, pair_config, write_pairs
from small_pictures import picture_config, write_pictures
from small_training import small_config, start, training_of, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.modules.averaging import AVERAGE

SLOWLY = ("--trainer.callbacks+", "text_corpus.Slow")
# Epochs of about 15 steps; a save every 10, so that the last one before the kill lies within the second epoch, and
# another epoch begins after it. The last step is saved before its report and without a validation.
STEPS = {"max_steps": 35}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Text in two objectives, and pictures varied and corrupted in every way."""
    directory = tmp_path_factory.mktemp("configs")
    corpus = write_corpus(directory / "corpus.jsonl", documents=36)
    pictures = write_pictures(directory / "pictures.parquet", count=160, size=18)
    masked = {"class_path": "MaskedImageModeling", "init_args": {"decoder_depth": 1, "decoder_width": 32}}
    turned = {"class_path": "Rotation", "init_args": {"views": "random"}}
    objectives = [masked, turned, {"class_path": "Colorization"}]
    text = small_config(corpus, trainer=STEPS)
    # Saved while validations have the averages in the place of the weights.
    text["model"]["init_args"]["average"] = {"decay": 0.9}
    # Of which two workers read every second row.
    stream = picture_config(pictures, [turned], trainer=STEPS, label_column=None, streaming=True, shuffle_buffer=30)
    stream["data"]["init_args"]["workers"] = 2
    return {
        "stream": write_config(directory / "stream.yaml", stream),
        "text": write_config(directory / "text.yaml", text),
        "pictures": write_config(directory / "pictures.yaml", picture_config(pictures, objectives, trainer=STEPS)),
    }


@pytest.fixture(scope="module")
def straight(configs, tmp_path_factory):
    """Where a training of a kind that nothing stopped has put its run, made when it is asked for."""

    @cache
    def train(kind):
        if kind not in configs:
            (weights,) = train("text").glob("small/*/checkpoints/last.ckpt")
            configs[kind] = write_from(kind, str(weights), tmp_path_factory.mktemp(kind))
        runs = tmp_path_factory.mktemp("straight")
        fit_here(runs, "--config", str(configs[kind]))
        return runs

    return train


def write_from(kind, weights, directory):
    """What begins with a text encoder: pairs in chunks, it locked at first, masks replayed on both sides; or labels."""
    start = {"init_from": weights}
    if kind == "pairs":
        rows = write_pairs(directory / "pairs.parquet", make_rows(200))
        masked = [{"class_path": "MaskedLanguageModeling", "init_args": {"probability": 0.3}}]
        pictured = [{"class_path": "MaskedImageModeling", "init_args": {"decoder_depth": 1, "decoder_width": 16}}]
        model = {"text": start | {"locked": True, "unlock_after": 30}, "chunk_size": 4}
        model |= {"text_replay": {"objectives": masked}, "vision_replay": {"objectives": pictured}}
        config = pair_config(rows, trainer=STEPS, model=model)
        del config["model"]["init_args"]["text_encoder"], config["data"]["init_args"]["vocabulary_size"]
        texts = small_config(write_corpus(directory / "texts.jsonl"), sequence_length=16)["data"]
        del texts["init_args"]["vocabulary_size"]
        pictures = picture_config(write_pictures(directory / "pictures.parquet"), [])["data"]
        parts = {"pairs": config["data"], "text": texts, "vision": pictures}
        config["data"] = {"class_path": "JointDataModule", "init_args": parts}
    else:
        rows = [
            {"text": f"{'a farmer' if index % 2 else 'the army'} needs peace {index}", "label": index % 2}
            for index in range(300)
        ]
        Dataset.from_list(rows).to_parquet(str(directory / "labels.parquet"))
        model = start | {"freeze": {"blocks": 1, "unfreeze_every": 12}, "dropout": 0.1}
        data = {"path": str(directory / "labels.parquet"), "text_column": "text", "label_column": "label"}
        data |= {
            "label_budget": 100,
            "batch_size": 8,
            "maximum_length": 16,
            "validation_share": 0.2,
            "test_split": None,
        }
        config = training_of(
            {"class_path": "FineTuning", "init_args": model},
            {"class_path": "LabelledDataModule", "init_args": data},
            STEPS,
        )
    return write_config(directory / f"{kind}.yaml", config)


def fit_here(runs, *arguments):
    """Train in this process, on one thread as those that are killed: starting one takes longer than the training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIT_PRETRAIN_RUNS", str(runs))
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            assert main(["fit", *arguments]) == 0
    finally:
        torch.set_num_threads(threads)


def weights(directory):
    """Everything a checkpoint says of model, optimiser and averages."""
    (path,) = directory.glob("small/*/checkpoints/last.ckpt")
    loaded = torch.load(path, weights_only=True)
    (optimizer,) = loaded["optimizer_states"]
    states = {f"{k}/{name}": value for k, state in optimizer["state"].items() for name, value in state.items()}
    averages = loaded.get(AVERAGE, {"weights": {}})["weights"]
    states |= {f"average/{name}": value for name, value in averages.items()}
    return loaded["global_step"], loaded["state_dict"] | states


def saved_step(directory):
    """The step of the last checkpoint, if there is one by now."""
    paths = list(directory.glob("small/*/checkpoints/last.ckpt"))
    return torch.load(paths[0], weights_only=True, mmap=True)["global_step"] if paths else 0


# How many workers there are makes no difference to what comes out, so one straight training serves all; that of a
# stream has as many.
@pytest.mark.parametrize(
    ("kind", "workers"), [("text", 0), ("text", 2), ("pictures", 2), ("pairs", 2), ("labels", 0), ("stream", 2)]
)
def test_killed_in_mid_epoch_and_resumed(configs, straight, tmp_path, kind, workers):
    expected_in, killed = straight(kind), tmp_path
    settings = [f"--data.{part}workers" for part in (("pairs.", "text.", "vision.") if kind == "pairs" else ("",))]
    arguments = ["--config", str(configs[kind]), *(word for name in settings for word in (name, str(workers)))]

    process = start("fit", *arguments, "--trainer.callbacks+", "text_corpus.KilledAt27", runs=killed)
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL and saved_step(killed) == 20

    fit_here(killed, *arguments, "--ckpt_path", "last")
    (step, expected), (other_step, found) = weights(expected_in), weights(killed)
    assert step == other_step == 35 and expected.keys() == found.keys()
    different = [
        name
        for name, value in expected.items()
        if not torch.equal(torch.as_tensor(value), torch.as_tensor(found[name]))
    ]
    assert different == []

    # It is one run, with the metrics of both parts, each step once.
    status, metrics = logged(killed)
    _, straight_metrics = logged(expected_in)
    assert status == "FINISHED" and [step for step, _ in metrics["validation/loss"]] == [10, 20, 30]
    assert [step for step, _ in metrics["train/loss"]] == [5, 10, 15, 20, 25, 30, 35]
    assert metrics == straight_metrics


def logged(directory):
    """The status of the one run of a directory, and its metrics by step but for those that a clock has a say in."""
    client = mlflow.MlflowClient(f"sqlite:///{directory}/mlflow.db")
    (record,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    names = (name for name in record.data.metrics if not name.startswith("throughput/"))
    histories = {name: client.get_metric_history(record.info.run_id, name) for name in names}
    return record.info.status, {
        name: sorted((one.step, one.value) for one in history) for name, history in histories.items()
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_a_killed_run(configs, tmp_path, monkeypatch, number, code):
    arguments = ["fit", "--config", str(configs["text"])]
    process = start(*arguments, "--trainer.max_steps", "2000", *SLOWLY, runs=tmp_path)
    deadline = time.monotonic() + 200
    while saved_step(tmp_path) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors and "--ckpt_path" in errors + output
    step = saved_step(tmp_path)
    assert 10 <= step < 2000
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (record,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert record.info.status == "KILLED"
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([*arguments, "--ckpt_path", "last", "--trainer.max_steps", str(step + 3)]) == 0
    assert client.get_run(record.info.run_id).info.status == "FINISHED" and saved_step(tmp_path) == step + 3
    # The last report is of the last step, whatever is between two.
    assert max(one.step for one in client.get_metric_history(record.info.run_id, "train/loss")) == step + 3
    # And of the epoch that this step was in, from 0, not of the next.
    (path,) = tmp_path.glob("small/*/checkpoints/last.ckpt")
    begun = torch.load(path, weights_only=True, mmap=True)["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    epochs = client.get_metric_history(record.info.run_id, "epoch")
    assert max((one.step, one.value) for one in epochs) == (step + 3, begun - 1)
