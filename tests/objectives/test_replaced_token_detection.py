"""Replaced token detection: labels where the sample equals the original, the loss by hand, gradients, the generator."""

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.objectives import ReplacedTokenDetection


@pytest.fixture
def objective(encoder, vocabulary) -> ReplacedTokenDetection:
    """Built, half of the positions hidden."""
    torch.manual_seed(1)
    objective = ReplacedTokenDetection(probability=0.5)
    objective.build(encoder, vocabulary)
    return objective


def test_a_sample_that_equals_the_original_counts_as_original(objective, encoder, batch, generator) -> None:
    batch["input_ids"][0, 5:15] = 7
    with torch.no_grad():
        objective.head.bias.fill_(-50.0)
        objective.head.bias[7] = 50.0  # the generator now says 7 whatever it sees
    one = objective.make_pass(batch, encoder, generator)
    hidden = torch.zeros_like(batch["attention_mask"]).scatter_(1, one.targets["indices"], one.targets["valid"])
    seen = one.inputs["input_ids"]
    assert (seen[hidden] == 7).all() and torch.equal(seen[~hidden], batch["input_ids"][~hidden])
    was_seven = hidden & (batch["input_ids"] == 7)
    assert was_seven.any(), "the case must occur"
    assert not one.targets["replaced"][was_seven].any()
    assert torch.equal(one.targets["replaced"], hidden & (batch["input_ids"] != 7))


def test_loss_by_hand_over_all_real_tokens(objective, encoder, batch, generator) -> None:
    one = objective.make_pass(batch, encoder, generator)
    features = encoder.forward_features(**one.inputs)
    output = objective.compute(features, one.targets, batch, encoder)
    real = batch["attention_mask"]
    probability = torch.sigmoid(objective.discriminate(features))
    likelihood = torch.where(one.targets["replaced"], probability, 1 - probability)[real]
    discriminator = -likelihood.log().mean()
    generator_loss = one.targets["generator_total"] / one.targets["generator_count"]
    torch.testing.assert_close(output.loss, generator_loss + 50 * discriminator)
    assert int(output.statistics["accuracy"][1]) == int(real.sum()), "[CLS] and [SEP] count"
    found, replaced = output.statistics["replaced_found"]
    kept, original = output.statistics["originals_kept"]
    assert int(replaced) == int(one.targets["replaced"].sum()) and int(replaced + original) == int(real.sum())
    assert int(found + kept) == int(output.statistics["accuracy"][0])


def test_the_generator_learns_from_its_own_loss_only(objective, encoder, batch, generator) -> None:
    one = objective.make_pass(batch, encoder, generator)
    features = encoder.forward_features(**one.inputs)
    output = objective.compute(features, one.targets, batch, encoder)
    discriminator_only = output.loss - one.targets["generator_total"] / one.targets["generator_count"]
    parameters = list(objective.generator.parameters())
    assert all(
        gradient is None or not gradient.abs().max() > 1e-6
        for gradient in torch.autograd.grad(discriminator_only, parameters, retain_graph=True, allow_unused=True)
    )
    assert any(gradient.any() for gradient in torch.autograd.grad(output.loss, parameters))


def test_the_generator_is_narrow_and_shares_the_embeddings(objective, encoder) -> None:
    assert objective.generator.config.width == 4 and objective.generator.config.depth == encoder.config.depth
    assert not any("embeddings" in name for name, _ in objective.named_parameters())
    assert objective.head.dense.out_features == encoder.width
    with pytest.raises(UserError, match="generator_width_share"):
        ReplacedTokenDetection(generator_width_share=1.5)


def test_sampling_is_replayed_by_the_generator(objective, encoder, batch) -> None:
    seen = [
        objective.make_pass(batch, encoder, torch.Generator().manual_seed(seed)).inputs["input_ids"]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_examples_say_what_was_sampled(objective, encoder, vocabulary, batch, generator) -> None:
    (row,) = objective.examples(encoder, batch, vocabulary, generator, count=1)
    assert len(row["originals of the sampled"].split()) == 12
    assert len(row["seen"].split()) == 24
