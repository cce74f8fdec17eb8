"""Bag of n-grams: what is drawn, the loss by hand, what is learned, and what it refuses."""

import math

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.ngram_embeddings import ngram_keys, ngram_pieces
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import BagOfNgrams, BagOfWords, compute_objectives
from lit_pretrain.objectives.batch import DataFacts


def encoder_of(ngrams: list[tuple[int, int]], vocabulary_size: int = 50) -> TextEncoder:
    """A small encoder that knows these pairs."""
    torch.manual_seed(0)
    config = TransformerConfig(depth=1, width=16, heads=2)
    encoder = TextEncoder(vocabulary_size, transformer=config, ngrams=2, ngram_rows=len(ngrams) + 3)
    keys = [ngram_keys(torch.tensor(pair), 2)[0][1] for pair in ngrams]
    encoder.embeddings.ngrams.set_keys(torch.stack(keys).sort().values)
    return encoder


def text(*pieces: int) -> list[int]:
    """Between [CLS] and [SEP]."""
    return [2, *pieces, 3]


def test_draws_are_the_halves_own_ngrams_and_the_loss_is_by_hand(vocabulary):
    pairs = [(5, 6), (6, 7), (7, 8), (10, 11)]
    encoder = encoder_of(pairs)
    # Halves: 5 6 7 8, 9 10 11 12, and 9 9 9 9, 8 7 8 9.
    ids = torch.tensor([text(5, 6, 7, 8, 9, 10, 11, 12), text(9, 9, 9, 9, 8, 7, 8, 9)])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    objective = BagOfNgrams(draws=2)
    objective.build(encoder, vocabulary)
    torch.nn.init.normal_(objective.decoder.weight)
    seen = set()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        drawn = objective.make_pass(batch, encoder, generator).targets["ngrams"].tolist()
        assert len(set(drawn[0])) == 2 and set(drawn[0]) < {1, 2, 3}
        assert drawn[1] == [0, 0] and sorted(drawn[2]) == [0, 4] and sorted(drawn[3]) == [0, 3]
        seen |= set(drawn[0])
    assert seen == {1, 2, 3}

    generator = torch.Generator().manual_seed(7)
    drawn = objective.make_pass(batch, encoder, generator).targets["ngrams"].tolist()
    everyone = [row for half in drawn for row in half if row]
    losses = []
    for asker, asked in ((0, 2), (1, 3), (2, 0), (3, 1)):
        half = (ids[asker % 2, 1:5] if asker < 2 else ids[asker % 2, 5:9]).tolist()
        pooled = encoder.forward_features(torch.tensor([text(*half)]))[0].mean(dim=0)
        scores = objective.decoder.weight[everyone] @ pooled
        losses += [scores.logsumexp(dim=0) - objective.decoder.weight[row] @ pooled for row in drawn[asked] if row]
    output = objective(encoder, batch, torch.Generator().manual_seed(7))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    assert output.statistics["loss"][1] == 4


def test_texts_without_known_ngrams_say_nothing(vocabulary):
    encoder = encoder_of([(5, 6)])
    ids = torch.tensor([text(7, 8, 9, 10, 7, 8)])
    objective = BagOfNgrams()
    objective.build(encoder, vocabulary)
    output = objective(encoder, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.Generator())
    output.loss.backward()
    assert output.loss.item() == 0.0 and output.statistics["loss"][1] == 0


def test_it_learns_which_ngrams_go_together_where_words_tell_nothing(vocabulary):
    """A text's pairs rise or fall, of the same words; a half never holds a pair of the other half."""
    up, down = [(one, one + 1) for one in range(10, 26)], [(one + 1, one) for one in range(10, 26)]
    encoder, objective, generator = encoder_of(up + down), BagOfNgrams(draws=4), torch.Generator().manual_seed(0)
    objective.build(encoder, vocabulary)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)

    def texts_of(count: int) -> dict[str, torch.Tensor]:
        starts = 10 + 4 * torch.randint(2, (count, 2), generator=generator)
        starts[:, 1] += 8
        runs = (starts[:, :, None] + torch.arange(4)).flatten(1)
        turned = torch.rand(count, generator=generator) < 0.5
        runs[turned] = runs[turned].view(-1, 2, 4).flip(2).flatten(1)
        ends = torch.full((count, 1), 2), torch.full((count, 1), 3)
        ids = torch.cat([ends[0], runs, ends[1]], dim=1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    for _ in range(300):
        optimizer.zero_grad()
        objective(encoder, texts_of(32), generator).loss.backward()
        optimizer.step()
    with torch.no_grad():
        batch = texts_of(400)
        loss = objective(encoder, batch, generator).loss.item()
    # 2 x 400 halves with 3 pairs each; half of them, and half again, are ruled out by direction and place.
    assert loss == pytest.approx(math.log(2400 / 4), abs=0.1)


def test_examples_show_what_is_expected_and_found(vocabulary):
    encoder = encoder_of([(5, 6), (7, 8)])
    ids = torch.tensor([text(5, 6, 9, 9, 7, 8), text(9, 9, 9, 9, 9, 9)])
    objective = BagOfNgrams()
    objective.build(encoder, vocabulary)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    first, second = objective.examples(encoder, batch, vocabulary, torch.Generator(), count=5)
    assert first["half"] == "5 6 9" and first["found"] == "7 8"
    assert set(first["expected"].split(", ")) == {"5 6", "7 8"} and second["found"] == ""
    assert ngram_pieces(int(ngram_keys(torch.tensor([0, 7, 49]), 3)[1][2])) == [0, 7, 49]


def test_examples_copy_no_table(vocabulary, largest_tensor):
    encoder = encoder_of([(row, row + 1) for row in range(5, 905)], vocabulary_size=1000)
    ids = torch.tensor([text(5, 6, 9, 9, 7, 8)])
    objective = BagOfNgrams()
    objective.build(encoder, vocabulary)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # As trainings in 16 bits call it, which would cast what it multiplies by.
    with torch.autocast("cpu", dtype=torch.bfloat16), largest_tensor:
        assert objective.examples(encoder, batch, vocabulary, torch.Generator())
    assert 0 < largest_tensor.elements < 900 * encoder.width


def test_one_pass_serves_words_and_ngrams(vocabulary, monkeypatch):
    encoder = encoder_of([(5, 6), (7, 8)])
    objectives = [BagOfWords(), BagOfNgrams()]
    for objective in objectives:
        objective.build(encoder, vocabulary)
    passes, whole = [], encoder.forward_features
    monkeypatch.setattr(encoder, "forward_features", lambda **inputs: passes.append(1) or whole(**inputs))
    ids = torch.tensor([text(5, 6, 9, 9, 7, 8)])
    compute_objectives(
        encoder, objectives, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.Generator()
    )
    assert len(passes) == 1


def test_what_it_refuses(encoder):
    with pytest.raises(UserError, match=r"the encoder has embeddings for: set encoder\.ngrams to 2"):
        BagOfNgrams().check_encoder(encoder)
    with pytest.raises(UserError, match=r"BagOfNgrams\.draws is 0"):
        BagOfNgrams(draws=0)
    with pytest.raises(UserError, match="BagOfNgrams cuts contiguous text"):
        BagOfNgrams().check_data(None, DataFacts(("input_ids", "next_sentence_label"), "sentence_pairs", 64))
