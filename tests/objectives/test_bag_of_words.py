"""Bag of words: the loss by hand, one pass for all who read halves, what is learned, and what it refuses."""

import math

import pytest
import torch

from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import BagOfWords, ContrastiveSpans, compute_objectives
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.objective import passes_run


def test_loss_by_hand(encoder, vocabulary, texts, generator):
    objective = BagOfWords()
    objective.build(encoder, vocabulary)
    torch.nn.init.normal_(objective.decoder.bias)
    output = objective(encoder, texts, generator)
    ids = [row[kept.bool()].tolist() for row, kept in zip(texts["input_ids"], texts["attention_mask"], strict=True)]
    firsts = [row[1:-1][: (len(row) - 2) // 2] for row in ids]
    seconds = [row[1:-1][(len(row) - 2) // 2 :] for row in ids]
    losses = []
    for given, asked in [*zip(firsts, seconds, strict=True), *zip(seconds, firsts, strict=True)]:
        features = encoder.forward_features(torch.tensor([[2, *given, 3]]))[0].mean(dim=0)
        scores = objective.decoder.weight @ features + objective.decoder.bias * encoder.width**0.5
        losses += [-scores.log_softmax(dim=0)[token] for token in asked]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    total, count = output.statistics["loss"]
    assert count == len(losses) and float(total / count) == pytest.approx(output.loss.item(), rel=1e-6)


def test_objectives_on_halves_read_one_pass(encoder, vocabulary, texts, generator, monkeypatch):
    objectives = [ContrastiveSpans(), BagOfWords()]
    for objective in objectives:
        objective.build(encoder, vocabulary)
    alone = [objective(encoder, texts, generator).loss for objective in objectives]
    passes, whole = [], encoder.forward_features
    monkeypatch.setattr(encoder, "forward_features", lambda **inputs: passes.append(1) or whole(**inputs))
    together = compute_objectives(encoder, objectives, texts, generator)
    assert len(passes) == 1 == len(passes_run(objectives))
    torch.testing.assert_close([together[one.name].loss for one in objectives], alone)


def test_it_learns_which_words_go_together(encoder, vocabulary, generator):
    """Each text has words of one of two kinds, and a half never holds the other half's words: only the kind tells."""
    objective = BagOfWords()
    objective.build(encoder, vocabulary)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)

    def texts_of(count: int) -> dict[str, torch.Tensor]:
        kinds = torch.randint(2, (count, 1), generator=generator)
        words = 5 + torch.randint(4, (count, 6), generator=generator) + 8 * kinds
        words[:, 3:] += 4
        ends = torch.full((count, 1), 2), torch.full((count, 1), 3)
        ids = torch.cat([ends[0], words, ends[1]], dim=1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    for _ in range(400):
        optimizer.zero_grad()
        objective(encoder, texts_of(32), generator).loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss = objective(encoder, texts_of(200), generator).loss.item()
    # Four words are left where kind and half are known: log 4 nats; 16 where they are not.
    assert loss == pytest.approx(math.log(4.0), abs=0.1)


def test_examples_show_what_is_expected_and_found(encoder, vocabulary, texts, generator):
    objective = BagOfWords()
    objective.build(encoder, vocabulary)
    rows = objective.examples(encoder, texts, vocabulary, generator, count=3)
    assert len(rows) == 3
    for row in rows:
        assert set(row) == {"half", "expected", "found"} and len(row["expected"].split()) == 12
        assert set(row["found"].split()) <= set(row["expected"].split())


def test_examples_score_what_they_show_alone(encoder, vocabulary, texts, generator, largest_tensor):
    objective = BagOfWords()
    objective.build(encoder, vocabulary)
    torch.nn.init.normal_(objective.decoder.weight)
    many = {name: value.repeat(8, 1) for name, value in texts.items()}
    halves = objective.make_pass(many, encoder, generator)
    with torch.no_grad():
        pooled = mean_pool(encoder.forward_features(**halves.inputs), halves.targets["mask"])
        scores = pooled @ objective.decoder.weight.T
    expected = (scores - scores.mean(dim=0))[:3].topk(12, dim=1).indices.tolist()
    with largest_tensor:
        rows = objective.examples(encoder, many, vocabulary, generator, count=3)
    assert [row["expected"] for row in rows] == [" ".join(map(str, words)) for words in expected]
    # Nothing of 256 halves for 2,000 words.
    objective.decoder = torch.nn.Linear(encoder.width, 2_000)
    largest_tensor.elements = 0
    with largest_tensor:
        objective.examples(encoder, many, vocabulary, generator, count=3)
    assert 0 < largest_tensor.elements < 256 * 2_000


def test_what_it_refuses(encoder):
    with pytest.raises(UserError, match="BagOfWords cuts contiguous text, and this data makes pairs: set data.layout"):
        BagOfWords().check_data(None, DataFacts(("input_ids", "next_sentence_label"), "sentence_pairs", 64))
    with pytest.raises(UserError, match="BagOfWords cuts sequences into halves, and data.sequence_length is 7"):
        BagOfWords().check_data(None, DataFacts(("input_ids",), "segments", 7))
