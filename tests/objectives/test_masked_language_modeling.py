"""Masked language modelling: what is hidden, the loss by hand, and the empty cases."""

import math

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.objectives import MaskedLanguageModeling


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_special_token_and_no_padding_is_ever_hidden(whole_word, encoder, vocabulary, batch, generator) -> None:
    objective = MaskedLanguageModeling(probability=0.9, whole_word=whole_word)
    objective.build(encoder, vocabulary)
    clean = {name: value.clone() for name, value in batch.items()}
    for _ in range(20):
        one = objective.make_pass(batch, encoder, generator)
        changed = one.inputs["input_ids"] != batch["input_ids"]
        special = batch["input_ids"] < 5
        assert not (changed & special).any()
        hidden = torch.zeros_like(changed).scatter_(1, one.targets["indices"], one.targets["valid"])
        assert not (hidden & special).any() and (changed <= hidden).all()
        assert not torch.isin(one.inputs["input_ids"][changed], torch.tensor([0, 1, 2, 3])).any()
    for name, value in clean.items():
        assert torch.equal(batch[name], value), "the clean batch must stay clean"


def test_loss_equals_a_full_projection_with_ignored_labels(encoder, vocabulary, batch, generator) -> None:
    objective = MaskedLanguageModeling()
    objective.build(encoder, vocabulary)
    one = objective.make_pass(batch, encoder, generator)
    features = encoder.forward_features(**one.inputs)
    output = objective.compute(features, one.targets, batch, encoder)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (indices, valid) in enumerate(zip(one.targets["indices"], one.targets["valid"], strict=True)):
        labels[row, indices[valid]] = batch["input_ids"][row, indices[valid]]
    logits = objective.head.logits(features, encoder.embeddings.token.weight)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.loss, expected)
    total, count = output.statistics["loss"]
    torch.testing.assert_close(total / count, expected)
    assert int(count) == sum(max(1, round(0.15 * int(n))) for n in batch["attention_mask"].sum(dim=1))
    correct = ((logits.argmax(-1) == labels) & (labels != -100)).sum()
    assert int(output.statistics["accuracy"][0]) == int(correct)
    gradients = torch.autograd.grad(output.loss, encoder.embeddings.token.weight, retain_graph=True)[0]
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, encoder.embeddings.token.weight)[0])


def test_nothing_to_hide_is_zero_not_nan(encoder, vocabulary, generator) -> None:
    objective = MaskedLanguageModeling()
    objective.build(encoder, vocabulary)
    batch = {"input_ids": torch.tensor([[2, 3, 0], [0, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}
    output = objective(encoder, batch, generator)
    output.loss.backward()
    assert float(output.loss) == 0.0
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_an_untrained_model_guesses(encoder, vocabulary, batch, generator) -> None:
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    objective = MaskedLanguageModeling()
    objective.build(encoder, vocabulary)
    assert abs(float(objective(encoder, batch, generator).loss) - math.log(50)) < 0.1


def test_the_same_generator_gives_the_same_masks(encoder, vocabulary, batch) -> None:
    objective = MaskedLanguageModeling()
    objective.build(encoder, vocabulary)
    seeds = [5, 5, 6]
    ids = [
        objective.make_pass(batch, encoder, torch.Generator().manual_seed(seed)).inputs["input_ids"] for seed in seeds
    ]
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[0], ids[2])


def test_examples_show_what_was_hidden(encoder, vocabulary, batch, generator) -> None:
    objective = MaskedLanguageModeling()
    objective.build(encoder, vocabulary)
    rows = objective.examples(encoder, batch, vocabulary, generator, count=3)
    assert len(rows) == 3
    masked = [int(word) for word in rows[0]["masked"].split()]
    hidden = [place for place, word in enumerate(masked) if word == 4]
    assert len(hidden) == round(0.15 * 24) == len(rows[0]["prediction"].split())
    assert [int(word) for word in rows[0]["truth"].split()] == batch["input_ids"][0, hidden].tolist()


def test_settings_build_it_again_and_wrong_shares_are_refused() -> None:
    settings = MaskedLanguageModeling(probability=0.3, whole_word=True, weight=2.0).settings()
    assert settings["class_path"] == "MaskedLanguageModeling"
    assert MaskedLanguageModeling(**settings["init_args"]).settings() == settings
    with pytest.raises(UserError, match="probability is 1.5"):
        MaskedLanguageModeling(probability=1.5)
    with pytest.raises(UserError, match="sum is at most 1"):
        MaskedLanguageModeling(mask_share=0.95)
