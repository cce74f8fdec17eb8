"""Sentence order prediction: swapped pairs by hand, one masked pass for two objectives, and its loss."""

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction, SentenceOrder, compute_objectives
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.objective import passes_run
from lit_pretrain.objectives.sentence_order import swap_texts


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pairs(batch):
    return {name: value for name, value in batch.items() if name != "next_sentence_label"}


def test_swapped_pairs_by_hand() -> None:
    # [CLS] 5 6 7 [SEP] 8 9 [SEP] [PAD], and a pair of one token each.
    ids = torch.tensor([[2, 5, 6, 7, 3, 8, 9, 3, 0], [2, 5, 3, 6, 3, 0, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]])
    mask = ids > 0
    found, second = swap_texts(ids, segments, mask, torch.tensor([1, 1]))
    assert found.tolist() == [[2, 8, 9, 3, 5, 6, 7, 3, 0], [2, 6, 3, 5, 3, 0, 0, 0, 0]]
    assert second.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]]
    # Back again; and what is not to be swapped stays.
    again = swap_texts(found, second, mask, torch.tensor([1, 0]))
    assert again[0].tolist() == [ids[0].tolist(), found[1].tolist()] and again[1][0].tolist() == segments[0].tolist()


def test_half_are_swapped_and_no_word_tells_which(pairs) -> None:
    objective, many = (
        SentenceOrder(),
        {name: value.repeat(50, *[1] * (value.ndim - 1)) for name, value in pairs.items()},
    )
    found = objective.arrange(many, draws())
    swapped = found["order_label"] == 1
    assert 0.45 < swapped.float().mean() < 0.55 and torch.equal(found["attention_mask"], many["attention_mask"])
    assert torch.equal(found["input_ids"].sort(dim=1).values, many["input_ids"].sort(dim=1).values)
    assert torch.equal(found["input_ids"][~swapped], many["input_ids"][~swapped])
    # What was given is not written into, and the draws are a function of the generator alone.
    assert "order_label" not in many and not torch.equal(found["input_ids"], many["input_ids"])
    assert torch.equal(objective.arrange(many, draws())["order_label"], found["order_label"])


def test_loss_by_hand(encoder, vocabulary, pairs) -> None:
    objective = SentenceOrder()
    objective.build(encoder, vocabulary)
    output = objective(encoder, pairs, draws(5))
    shown = objective.arrange(pairs, draws(5))
    tokens = encoder.forward_features(shown["input_ids"], shown["attention_mask"], shown["token_type_ids"])
    scores = objective.classifier(torch.tanh(objective.pooler.dense(tokens[:, 0]))).log_softmax(dim=-1)
    labels = shown["order_label"]
    assert float(output.loss) == pytest.approx(-float(scores[torch.arange(16), labels].mean().detach()), rel=1e-5)
    right = scores.argmax(dim=-1) == labels
    found = {name: tuple(float(one) for one in pair) for name, pair in output.statistics.items()}
    assert found["accuracy"] == (float(right.sum()), 16)
    assert found["accuracy_swapped"] == (float(right[labels == 1].sum()), float(labels.sum()))


def test_order_and_masked_words_are_learned_from_one_pass(encoder, vocabulary, pairs) -> None:
    """As in ALBERT: words are hidden in the swapped text, whatever the order of the two in the mix."""
    order, masked = SentenceOrder(), MaskedLanguageModeling()
    for objective in (order, masked):
        objective.build(encoder, vocabulary)
    seen, forward = [], encoder.forward_features
    encoder.forward_features = lambda **inputs: seen.append(inputs["input_ids"]) or forward(**inputs)
    for mix in ([order, masked], [masked, order]):
        seen.clear()
        outputs = compute_objectives(encoder, mix, pairs, draws(5))
        shown = order.arrange(pairs, draws(5))["input_ids"]
        (read,) = seen
        assert passes_run(mix) == [masked] and 0 < int((read != shown).sum()) < 0.3 * shown.numel()
        outputs["sentence_order"].loss.backward()
        assert encoder.embeddings.token.weight.grad.abs().sum() > 0
        # The words that were hidden are asked for, and not what stood there before the swap.
        alone = masked(encoder, order.arrange(pairs, generator := draws(5)), generator).loss
        assert float(outputs["masked_language_modeling"].loss) == float(alone)


def test_data_that_does_not_serve_it(encoder, vocabulary, pairs) -> None:
    SentenceOrder().check_data(encoder, DataFacts(("input_ids", "token_type_ids"), "sentence_pairs", 128))
    for fields, layout in ((("input_ids",), "segments"), (("input_ids", "next_sentence_label"), "sentence_pairs")):
        with pytest.raises(UserError, match=r"data\.layout to sentence_pairs and data\.random_next to never"):
            SentenceOrder().check_data(encoder, DataFacts(fields, layout, 128))
    with pytest.raises(UserError, match=r"data\.random_next to balanced"):
        NextSentencePrediction().check_data(encoder, DataFacts(("input_ids",), "sentence_pairs", 128))


def test_examples(encoder, vocabulary, pairs) -> None:
    objective = SentenceOrder()
    objective.build(encoder, vocabulary)
    rows = objective.examples(encoder, pairs, vocabulary, draws(), count=4)
    assert len(rows) == 4 and {row["truth"] for row in rows} <= {"swapped", "in order"}
    shown = objective.arrange(pairs, draws())["input_ids"][0]
    assert rows[0]["first"].split()[:2] == [str(int(one)) for one in shown[:2]]
