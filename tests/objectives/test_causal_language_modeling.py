"""Causal language modelling: the loss by hand, and no look into the future."""

import torch

from lit_pretrain.objectives import CausalLanguageModeling


def test_loss_by_hand(encoder, vocabulary, batch, generator) -> None:
    objective = CausalLanguageModeling()
    objective.build(encoder, vocabulary)
    output = objective(encoder, batch, generator)
    total, count = 0.0, 0
    for row in range(16):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length]
        segments = batch["token_type_ids"][row, :length]
        for place in range(1, length):
            # Only the tokens before are given, so nothing else can have been used.
            features = encoder.forward_features(ids[None, :place], None, segments[None, :place], causal=True)
            logits = objective.head.logits(features[0, -1], encoder.embeddings.token.weight)
            total -= float(torch.log_softmax(logits, -1)[ids[place]])
            count += 1
    assert int(output.statistics["loss"][1]) == count
    assert abs(float(output.loss) - total / count) < 1e-4


def test_examples_predict_the_second_half(encoder, vocabulary, batch, generator) -> None:
    objective = CausalLanguageModeling()
    objective.build(encoder, vocabulary)
    (row,) = objective.examples(encoder, batch, vocabulary, generator, count=1)
    assert len(row["given"].split()) == 12 == len(row["truth"].split()) == len(row["prediction"].split())
