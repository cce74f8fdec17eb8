"""Figures without learning: of guesses that are known by hand, and of real data and real heads."""

import math

import pytest
import torch
import torch.nn.functional as functional

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.measures.retrieval import chance_of_retrieval, retrieval_both_ways
from lit_pretrain.modules.fine_tuning.tasks import make_task
from lit_pretrain.modules.objective_mix import chance_of_mix
from lit_pretrain.objectives import (
    BagOfNgrams,
    Colorization,
    Jigsaw,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
    Rotation,
)
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes
from lit_pretrain.objectives.color_cells import lightness_and_colors


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
    name = "replaced_token_detection"
    found = chance_of_mix([ReplacedTokenDetection()], Texts())
    assert found.keys() == {f"{name}/generator_{figure}" for figure in ("loss", "accuracy", "perplexity")}
    assert chance_of_mix([MaskedLanguageModeling()], None) == {}
    # What the generator replaces is known from an evaluation.
    found = chance_of_mix([ReplacedTokenDetection()], Texts(), {f"{name}/replaced_share": 0.1, "other/loss": 3.0})
    guess = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert found["loss"] == pytest.approx(pieces + 50 * guess)
    figures = ("discriminator_loss", "accuracy", "replaced_found", "originals_kept")
    assert [found[f"{name}/{figure}"] for figure in figures] == pytest.approx([guess, 0.9, 0.0, 1.0])


def test_pictures():
    nothing = AnswerFrequencies()
    assert Rotation().chance(nothing)["loss"] == pytest.approx(math.log(4))
    assert Rotation().chance(nothing)["accuracy_90_degrees"] == 0.25
    assert MaskedImageModeling().chance(nothing) == {"explained_variance": 0.0, "loss": 1.0}
    # Of plain pixels the variance of those that were asked.
    told = AnswerFrequencies(statistics={"loss": 0.3, "explained_variance": 0.25})
    assert MaskedImageModeling(normalize_targets=False).chance(told)["loss"] == pytest.approx(0.4)
    assert MaskedImageModeling(normalize_targets=False).chance(nothing).keys() == {"explained_variance"}
    jigsaw = Jigsaw(4)
    jigsaw.build(VisionEncoder(24, 4, transformer=VisionTransformerConfig(depth=1, width=16, heads=2)))
    jigsaw.orders = torch.stack([torch.arange(9), *(torch.arange(9).roll(1),) * 2, torch.tensor([1, 0, *range(2, 9)])])
    # The second and the third are one order, which has one tile where the last has it, and none where the first has it.
    assert jigsaw.chance(nothing)["in_place"] == pytest.approx((9 + 9 + 1) / 36)


@pytest.mark.parametrize("mode", ["bins", "regression"])
def test_colours_by_the_objectives_own_loss(mode, generator):
    """A head that always tells the distribution of the colours has the loss and the figures that are called chance."""
    encoder = VisionEncoder(16, 8, transformer=VisionTransformerConfig(depth=1, width=16, heads=2))
    objective = Colorization(mode, cells_per_patch=2).eval()
    assert objective.chance(AnswerFrequencies()) == {}
    objective.build(encoder)
    images = torch.rand(6, 3, 2, 2, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    objective.measure(images)
    chance = objective.chance(AnswerFrequencies())
    colors = lightness_and_colors(images, 8, 2)[1]

    def measured(bias):
        with torch.no_grad():
            objective.head.weight.zero_()
            objective.head.bias.copy_(bias.repeat(4))
            statistics = objective(encoder, {"images": images}, generator).statistics
        return {name: float(total / count) for name, (total, count) in statistics.items()}

    if mode == "regression":
        found = measured(colors.flatten(0, 2).mean(dim=0) / 110)
        names = ["loss"]
    else:
        targets = objective.bins.soft_targets(colors)
        nearest = targets.indices[..., :1]
        found = measured(torch.bincount(nearest.flatten(), minlength=len(objective.bins)).float())
        names = ["accuracy"]
        for name, factors in (("cross_entropy", 1.0), ("loss", objective.bins.weights[nearest])):
            sums = torch.zeros(len(objective.bins))
            sums.index_add_(0, targets.indices.flatten(), (targets.probabilities * factors).flatten())
            assert chance[name] == pytest.approx(measured((sums / sums.sum()).log().clamp_min(-1e4))[name], rel=1e-4)
    found["ab_error"] = found["ab_error_of_grey"]
    assert [chance[name] for name in (*names, "ab_error")] == pytest.approx(
        [found[name] for name in (*names, "ab_error")], rel=1e-4
    )


def test_ngrams_that_a_decoder_of_zeros_tells(generator):
    objective = BagOfNgrams(draws=4).eval()
    assert objective.chance(AnswerFrequencies()) == {}
    config = TransformerConfig(depth=1, width=16, heads=2)
    encoder = TextEncoder(50, transformer=config, ngrams=2, ngram_rows=1000)
    encoder.embeddings.ngrams.set_keys(torch.arange(1000) * 2**20 // 20)
    objective.build(encoder)
    ids = torch.randint(5, 40, (6, 24), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    statistics = objective(encoder, batch, generator).statistics
    found = {name: float(total / count) for name, (total, count) in statistics.items()}
    assert found["loss"] == pytest.approx(objective.chance(AnswerFrequencies(statistics=found))["loss"], rel=1e-5)


@pytest.mark.parametrize("captions", [1, 3])
def test_retrieval_by_embeddings_that_know_nothing(captions, generator):
    pictures = 21
    owners = torch.arange(pictures).repeat_interleave(captions)
    # Two pictures bear the same caption.
    keys = torch.arange(len(owners))
    keys[0] = keys[-1]
    found = {}
    for _ in range(300):
        texts, shown = torch.randn(len(owners), 16, generator=generator), torch.randn(21, 16, generator=generator)
        texts[0] = texts[-1]
        figures = retrieval_both_ways(functional.normalize(texts), functional.normalize(shown), owners, keys)
        found = {name: found.get(name, 0.0) + value / 300 for name, value in figures.items()}
    chance = chance_of_retrieval(owners, keys)
    assert chance.keys() == found.keys()
    for name, value in chance.items():
        assert value == pytest.approx(found[name], rel=0.06, abs=0.012), name
    alone = chance_of_retrieval(torch.arange(20), torch.arange(20))
    assert alone["text_to_picture/median_rank"] == alone["picture_to_text/median_rank"] == 10.5
    assert alone["text_to_picture/recall_at_5"] == pytest.approx(0.25)


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
    assert chance == pytest.approx(measured, abs=1e-6)
    several = make_task(LabelFacts("multi_label", ["a", "b"], [6, 2], 10))
    labels = torch.zeros(10, 2)
    labels[:6, 0] = labels[:2, 1] = 1.0
    logits = torch.tensor([0.6, 0.2]).logit().expand(10, 2)
    metrics = several.metrics()
    metrics.update(*several.for_metrics(logits, labels))
    for name in ("average_precision", "f1", "f1_micro"):
        assert several.chance()[name] == pytest.approx(float(metrics[name].compute()))
    assert several.chance()["loss"] == pytest.approx(float(several.loss(logits, labels)))
    numbers = make_task(LabelFacts("regression", mean=5.0, std=2.0))
    labels = torch.tensor([3.0, 7.0])
    assert numbers.chance()["loss"] == float(numbers.loss(torch.zeros(2, 1), labels)) == 1.0
    assert numbers.chance()["mse"] == 4.0
    assert make_task(LabelFacts("single_label", ["a", "b"])).chance() == {}
    assert chance_of_classes([1.0, 0.0])["loss"] == 0.0
