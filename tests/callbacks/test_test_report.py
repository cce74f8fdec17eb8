"""What a test leaves in its run: tables, figures and the worst mistakes, by hand, from answers that are known."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger

from lit_pretrain.callbacks import TestReport
from lit_pretrain.callbacks.test_report import caption_of
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.modules.fine_tuning.tasks import make_task
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer


class Samples(LightningDataModule):
    """Samples of known answers, two a batch; sample i is row 10 + i of its source."""

    def __init__(self, logits, labels, shown):
        super().__init__()
        self.shown = shown
        ids = torch.arange(len(logits)) + 10
        self.batches = [
            {"logits": logits[i : i + 2], "label": labels[i : i + 2], "sample_id": ids[i : i + 2]}
            for i in range(0, len(logits), 2)
        ]

    def test_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def raw_samples(self, stage, indices):
        assert stage == "test"
        return [self.shown[index - 10] for index in indices]


class Answers(LightningModule):
    """Answers what the batch says."""

    def __init__(self, facts):
        super().__init__()
        self.facts, self.task = facts, make_task(facts)

    def test_step(self, batch, batch_index):
        return batch


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One database for all."""
    return tmp_path_factory.mktemp("runs")


def report(runs, facts, logits, labels, shown, logger=None, **settings):
    """The directory of the run of a test."""
    logger = logger or MLflowLogger(experiment="reports", runs_directory=str(runs))
    trainer = Trainer(accelerator="cpu", logger=logger, callbacks=[TestReport(**settings)], enable_progress_bar=False)
    trainer.test(Answers(facts), Samples(logits, labels, shown), verbose=False)
    return Path(logger.run_directory if isinstance(logger, MLflowLogger) else logger.log_dir)


def table(directory, name):
    content = json.loads((directory / "report" / f"{name}.json").read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def figures(directory):
    return {path.name.split("+")[0] for path in (directory / "images").glob("report~*.png")}


def test_one_class_of_texts(runs):
    facts = LabelFacts("single_label", ["calm", "storm", "fog"])
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.9, 0.06, 0.04], [0.2, 0.5, 0.3]]).log()
    labels = torch.tensor([0, 1, 1, 1, 0])
    shown = [{"text": f"text {number}"} for number in range(5)]
    directory = report(runs, facts, logits, labels, shown)
    # Told: calm, calm, storm, calm, storm.
    assert table(directory, "classes") == [
        {"class": "calm", "precision": 0.3333, "recall": 0.5, "f1": 0.4, "samples": 2.0},
        {"class": "storm", "precision": 0.5, "recall": 0.3333, "f1": 0.4, "samples": 3.0},
        {"class": "fog", "precision": 0.0, "recall": 0.0, "f1": 0.0, "samples": 0.0},
    ]
    mistakes = table(directory, "mistakes")
    assert [(row["sample_id"], row["text"], row["label"], row["predicted"]) for row in mistakes] == [
        (13, "text 3", "storm", "calm"),
        (14, "text 4", "calm", "storm"),
        (11, "text 1", "storm", "calm"),
    ]
    assert (mistakes[0]["probability_of_predicted"], mistakes[0]["probability_of_label"]) == (0.9, 0.06)
    assert figures(directory) == {"report~confusion_matrix", "report~calibration"}


@pytest.mark.parametrize("kind", [MLflowLogger, CSVLogger])
def test_numbers_of_pictures(runs, kind):
    shown = [{"image": PIL.Image.new("RGB", (20, 12), (40 * number, 0, 0))} for number in range(4)]
    facts = LabelFacts("regression", mean=1.0, std=2.0)
    logits, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1.0, 5.0, 5.5, 6.0])
    logger = CSVLogger(str(runs)) if kind is CSVLogger else None
    directory = report(runs, facts, logits, labels, shown, logger, mistakes=2)
    # In their own unit the numbers are 1, 3, 5 and 7.
    assert table(directory, "mistakes") == [
        {"sample_id": 11, "label": 5.0, "predicted": 3.0, "error": 2.0},
        {"sample_id": 13, "label": 6.0, "predicted": 7.0, "error": 1.0},
    ]
    assert figures(directory) == {"report~scatter", "report~mistakes"}
    assert not (directory / "report" / "classes.json").exists()


def test_several_classes(runs):
    facts = LabelFacts("multi_label", ["wet", "cold"])
    logits = torch.tensor([[0.9, 0.2], [0.4, 0.6], [0.1, 0.9]]).logit()
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    directory = report(runs, facts, logits, labels, [{"text": word} for word in "abc"], mistakes=2)
    wet, cold = table(directory, "classes")
    assert wet == {"class": "wet", "precision": 1.0, "recall": 0.3333, "f1": 0.5, "samples": 3.0}
    assert cold == {"class": "cold", "precision": 0.5, "recall": 1.0, "f1": 0.6667, "samples": 1.0}
    rows = [(row["text"], row["label"], row["predicted"]) for row in table(directory, "mistakes")]
    assert rows == [("c", "wet", "cold"), ("b", "wet cold", "cold")]


def test_a_single_class_that_is_there_or_not(runs):
    facts = LabelFacts("multi_label", ["wet"])
    logits, labels = torch.tensor([[0.9], [0.4], [0.8]]).logit(), torch.tensor([[1.0], [1.0], [0.0]])
    directory = report(runs, facts, logits, labels, [{"text": word} for word in "abc"], mistakes=1)
    (wet,) = table(directory, "classes")
    assert wet == {"class": "wet", "precision": 0.5, "recall": 0.5, "f1": 0.5, "samples": 2.0}
    assert [(row["text"], row["predicted"]) for row in table(directory, "mistakes")] == [("c", "wet")]


@pytest.mark.parametrize("right", [True, False])
def test_nothing_but_right_or_wrong_answers(runs, right):
    facts = LabelFacts("single_label", ["a", "b"])
    logits, labels = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]), torch.tensor([0, 1] if right else [1, 0])
    directory = report(runs, facts, logits, labels, [{"text": "x"}, {"text": "y"}])
    assert (directory / "report" / "mistakes.json").exists() == (not right)
    assert {row["f1"] for row in table(directory, "classes")} == {float(right)}


def test_captions_of_classes_and_of_numbers():
    assert caption_of({"label": "cat", "predicted": "dog"}).text == "cat\nnot dog"
    assert caption_of({"label": 1.5, "predicted": 2.0, "error": 0.5}).text == "1.5\nnot 2"
