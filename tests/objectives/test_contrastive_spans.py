"""Contrastive spans: the cut and the loss by hand, one batch in one process or two, and what it refuses."""

import math
import os

import pytest
import torch
from child_processes import both_ranks

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.ngram_embeddings import ngram_keys
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import BagOfNgrams, ContrastiveSpans
from lit_pretrain.objectives.batch import DataFacts


def test_loss_by_hand(encoder, vocabulary, texts, generator):
    objective = ContrastiveSpans(temperature=0.2)
    objective.build(encoder, vocabulary)
    output = objective(encoder, texts, generator)

    halves = []
    for row in range(16):
        length = int(texts["attention_mask"][row].sum())
        text = texts["input_ids"][row, 1 : length - 1]
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            ids = torch.cat([torch.tensor([2]), part, torch.tensor([3])])[None]
            feature = encoder.forward_features(ids)[0].mean(dim=0)
            halves.append(feature / feature.norm())
    first, second = torch.stack(halves[::2]), torch.stack(halves[1::2])
    scores = first @ second.T / 0.2
    expected = -(scores.log_softmax(dim=1).diagonal() + scores.log_softmax(dim=0).diagonal()).mean() / 2
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    hits = [(scores.argmax(dim=axis) == torch.arange(16)).float().mean() for axis in (0, 1)]
    total, count = output.statistics["accuracy"]
    torch.testing.assert_close(total / count, sum(hits) / 2)


def gradients_of(rows: slice) -> list[torch.Tensor]:
    """Of every parameter, from some rows of one batch, whose halves are compared with each other in two ways."""
    torch.manual_seed(4)
    config = TransformerConfig(depth=1, width=16, heads=2)
    encoder = TextEncoder(50, transformer=config, ngrams=2, ngram_rows=200)
    ids = torch.randint(5, 50, (8, 14), generator=torch.Generator().manual_seed(6))
    ids[:, 0], ids[:, -1] = 2, 3
    # Texts have unequally many pairs of words with rows.
    encoder.embeddings.ngrams.set_keys(ngram_keys(ids[1:, 2:], 2)[0][:, 1:].unique()[::2])
    ngrams = BagOfNgrams(draws=20)
    ngrams.build(encoder)
    torch.nn.init.normal_(ngrams.decoder.weight)
    batch = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows])}
    for objective in (ContrastiveSpans(), ngrams):
        objective(encoder, batch, torch.Generator()).loss.backward()
    parameters = [*encoder.parameters(), *ngrams.parameters()]
    return [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]


def half_the_batch(directory):
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = gradients_of(slice(4 * rank, 4 * rank + 4))
    torch.distributed.destroy_process_group()
    return found


def test_two_processes_make_the_gradient_of_the_whole_batch(tmp_path):
    first, second = both_ranks(half_the_batch, tmp_path)
    for whole, one, other in zip(gradients_of(slice(None)), first, second, strict=True):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-4, atol=1e-6)


def test_it_learns_which_halves_belong_together(encoder, vocabulary, generator):
    # Of every topic's five words two stand in first halves and three in second ones: no word is in both.
    objective, draws = ContrastiveSpans(), torch.Generator().manual_seed(5)
    objective.build(encoder, vocabulary)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)

    def batch():
        topics = torch.randperm(9, generator=draws)[:6, None] * 5 + 5
        first = topics + torch.randint(0, 2, (6, 8), generator=draws)
        second = topics + torch.randint(2, 5, (6, 8), generator=draws)
        ids = torch.cat([torch.full((6, 1), 2), first, second, torch.full((6, 1), 3)], dim=1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def accuracy():
        total, count = objective(encoder, batch(), generator).statistics["accuracy"]
        return float(total / count)

    before = sum(accuracy() for _ in range(10)) / 10
    for _ in range(150):
        optimizer.zero_grad()
        objective(encoder, batch(), generator).loss.backward()
        optimizer.step()
    after = sum(accuracy() for _ in range(10)) / 10
    assert before < 0.4 and after > 0.9, (before, after)


def test_examples_show_what_is_taken_for_what(encoder, vocabulary, texts, generator):
    objective = ContrastiveSpans().eval()
    objective.build(encoder, vocabulary)
    rows = objective.examples(encoder, texts, vocabulary, generator, count=5)
    assert len(rows) == 5
    one = objective.make_pass(texts, encoder, generator)
    scores, _, _ = objective.logits(encoder.forward_features(**one.inputs), one.targets)
    for number, row in enumerate(rows):
        found = int(scores[number].argmax())
        halves = [
            " ".join(map(str, one.inputs["input_ids"][at][one.targets["mask"][at].bool()].tolist()))
            for at in (number, 16 + found, 16 + number)
        ]
        assert row["first"] == halves[0] and row["taken for its second"] == halves[1]
        assert row["truth"] == ("right" if found == number else halves[2])


def test_what_it_refuses(encoder, vocabulary, texts, generator):
    with pytest.raises(UserError, match=r"temperature is 0\.0: give a number in \(0, 1\]"):
        ContrastiveSpans(temperature=0.0)
    objective = ContrastiveSpans()
    with pytest.raises(UserError, match=r"set data\.layout to segments"):
        objective.check_data(None, DataFacts(("input_ids", "next_sentence_label"), "sentence_pairs", 128))
    with pytest.raises(UserError, match=r"data\.sequence_length is 7: give at least 8"):
        objective.check_data(None, DataFacts(("input_ids",), "segments", 7))
    alone = {name: one[:1] for name, one in texts.items()}
    with pytest.raises(UserError, match=r"this batch has one: raise data\.batch_size"):
        objective(encoder, alone, generator)
    # The last batch of a validation may be of one.
    assert math.isclose(float(objective.eval()(encoder, alone, generator).loss.detach()), 0.0, abs_tol=1e-6)
