"""Figures without learning: of guesses that are known by hand, and of real data and real heads."""

import math

import pytest
import torch

from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.measures.retrieval import chance_of_retrieval
from lit_pretrain.modules.fine_tuning.tasks import make_task
from lit_pretrain.modules.objective_mix import chance_of_mix
from lit_pretrain.objectives import (
    Colorization,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
    Rotation,
)
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes


class Texts:
    """What a data module of texts knows."""

    batch_size, random_share = 16, 0.6

    def piece_shares(self):
        return torch.tensor([0.5, 0.25, 0.25]).numpy()


def test_a_mix_on_texts():
    found = chance_of_mix([MaskedLanguageModeling(weight=2.0), NextSentencePrediction()], Texts())
    pieces = 1.5 * math.log(2)
    pairs = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert found == pytest.approx(
        {
            "masked_language_modeling/loss": pieces,
            "masked_language_modeling/accuracy": 0.5,
            "masked_language_modeling/perplexity": math.exp(pieces),
            "next_sentence_prediction/loss": pairs,
            "next_sentence_prediction/accuracy": 0.6,
            "loss": 2 * pieces + pairs,
        }
    )
    # Where a loss is not known, no sum is.
    found = chance_of_mix([ReplacedTokenDetection()], Texts())
    assert found.keys() == {f"replaced_token_detection/generator_{name}" for name in ("loss", "accuracy", "perplexity")}
    assert chance_of_mix([MaskedLanguageModeling()], None) == {}


def test_pictures():
    nothing = AnswerFrequencies()
    assert Rotation().chance(nothing)["loss"] == pytest.approx(math.log(4))
    assert Rotation().chance(nothing)["accuracy_90_degrees"] == 0.25
    assert MaskedImageModeling().chance(nothing) == {"explained_variance": 0.0, "loss": 1.0}
    assert Colorization().chance(nothing) == {}
    assert chance_of_retrieval(20) == pytest.approx(
        {f"{way}/recall_at_{cut}": cut / 20 for way in ("text_to_picture", "picture_to_text") for cut in (1, 5, 10)}
        | {"mean_recall": 16 / 60}
    )


def test_labels_by_the_tasks_own_metrics():
    facts = LabelFacts("single_label", ["a", "b", "c"], [6, 3, 1], 10)
    task = make_task(facts)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(10, 3)
    metrics = task.metrics()
    metrics.update(*task.for_metrics(logits, labels))
    measured = {name: float(value) for name, value in metrics.compute().items()}
    measured["loss"] = float(task.loss(logits, labels))
    chance = task.chance()
    assert chance == pytest.approx({name: measured[name] for name in ("accuracy", "f1", "loss")}, abs=1e-6)
    several = make_task(LabelFacts("multi_label", ["a", "b"], [5, 2], 10))
    labels = torch.zeros(10, 2)
    labels[:5, 0] = labels[:2, 1] = 1.0
    logits = torch.tensor([0.5, 0.2]).logit().expand(10, 2)
    metrics = several.metrics()
    metrics.update(*several.for_metrics(logits, labels))
    assert several.chance()["average_precision"] == pytest.approx(float(metrics["average_precision"].compute()))
    assert several.chance()["loss"] == pytest.approx(float(several.loss(logits, labels)))
    numbers = make_task(LabelFacts("regression", mean=5.0, std=2.0))
    labels = torch.tensor([3.0, 7.0])
    assert numbers.chance()["loss"] == float(numbers.loss(torch.zeros(2, 1), labels)) == 1.0
    assert numbers.chance()["mse"] == 4.0
    assert make_task(LabelFacts("single_label", ["a", "b"])).chance() == {}
    assert chance_of_classes([1.0, 0.0])["loss"] == 0.0
