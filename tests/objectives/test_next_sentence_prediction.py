"""Next sentence prediction: the loss by hand, and whose pass it reads."""

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.objectives import (
    CausalLanguageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    compute_objectives,
)
from lit_pretrain.objectives.batch import DataFacts


def test_loss_by_hand(encoder, vocabulary, batch, generator) -> None:
    objective = NextSentencePrediction()
    objective.build(encoder, vocabulary)
    torch.nn.init.normal_(objective.classifier.weight)
    features = encoder.forward_features(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    pooled = torch.tanh(features[:, 0] @ objective.pooler.dense.weight.T + objective.pooler.dense.bias)
    logits = pooled @ objective.classifier.weight.T + objective.classifier.bias
    expected = -torch.log_softmax(logits, -1)[torch.arange(16), batch["next_sentence_label"]].mean()
    output = objective(encoder, batch, generator)
    torch.testing.assert_close(output.loss, expected)
    accuracy = (logits.argmax(-1) == batch["next_sentence_label"]).float().mean()
    total, count = output.statistics["accuracy"]
    assert int(count) == 16
    torch.testing.assert_close(total / count, accuracy)


def test_it_reads_the_masked_pass_as_bert_does_and_never_the_causal_one(encoder, vocabulary, batch) -> None:
    sentence, masked, causal = NextSentencePrediction(), MaskedLanguageModeling(), CausalLanguageModeling()
    for objective in (sentence, masked, causal):
        objective.build(encoder, vocabulary)
    passes = []
    original = encoder.forward_features
    encoder.forward_features = lambda **inputs: passes.append(inputs) or original(**inputs)

    def loss(*objectives):
        passes.clear()
        return compute_objectives(encoder, objectives, batch, torch.Generator().manual_seed(0))[sentence.name].loss

    clean = loss(sentence)
    assert len(passes) == 1
    with_masked = loss(sentence, masked)
    assert len(passes) == 1 and (passes[0]["input_ids"] == 4).any()
    assert not torch.equal(with_masked, clean)
    torch.testing.assert_close(loss(causal, sentence), clean)
    assert len(passes) == 2
    torch.testing.assert_close(loss(causal, sentence, masked), with_masked)


def test_it_needs_pairs() -> None:
    NextSentencePrediction().check_data(None, DataFacts(("input_ids", "next_sentence_label"), "sentence_pairs", 128))
    with pytest.raises(UserError, match="set data.layout to sentence_pairs"):
        NextSentencePrediction().check_data(None, DataFacts(("input_ids",), "segments", 128))


def test_examples_have_both_texts(encoder, vocabulary, batch, generator) -> None:
    objective = NextSentencePrediction()
    objective.build(encoder, vocabulary)
    rows = objective.examples(encoder, batch, vocabulary, generator, count=2)
    assert [row["truth"] for row in rows] == ["follows", "random"]
    assert rows[0]["first"].split() == [str(one) for one in batch["input_ids"][0, :4].tolist()]
