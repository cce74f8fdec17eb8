"""The probe learns what is linear, whatever the features' sizes, and nothing else."""

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.linear_probe import choose_regularization, fit_linear_probe


def separable(count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, generator=generator)
    return features, (features[:, 0] + features[:, 1] > 0).long() + 2 * (features[:, 2] > 0).long()


def test_linear_classes_are_learned_and_sizes_do_not_matter():
    features, labels = separable()
    test, truth = separable(seed=1)
    plain = fit_linear_probe(features, labels)
    assert plain.accuracy(test, truth) > 0.93
    sizes, shift = torch.tensor([1e-3, 1e3, 1.0, 50.0, 1e-2]), torch.tensor([9.0, -1e3, 0.0, 3.0, 1.0])
    stretched = fit_linear_probe(features * sizes + shift, labels)
    # Equal but for where L-BFGS stops.
    assert float((stretched.predict(test * sizes + shift) == plain.predict(test)).float().mean()) > 0.98


def test_constant_features_and_missing_classes_do_no_harm():
    features, labels = separable()
    constant = torch.cat([features, torch.full((len(features), 1), 3.7)], dim=1)
    probe = fit_linear_probe(constant, torch.where(labels == 1, 3, labels))
    assert probe.accuracy(constant, torch.where(labels == 1, 3, labels)) > 0.9
    assert 1 not in probe.predict(constant).tolist()


def test_noise_is_not_learned():
    features, _ = separable()
    test, truth = separable(seed=1)
    noise = torch.randint(0, 4, (len(features),), generator=torch.Generator().manual_seed(2))
    assert fit_linear_probe(features, noise).accuracy(test, truth) < 0.45


def test_one_class_is_refused():
    with pytest.raises(UserError, match="two classes"):
        fit_linear_probe(torch.zeros(4, 2), torch.zeros(4))


def test_it_is_the_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(300, 6, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    labels[features[:, 0] > 0.5] = 1
    probe = fit_linear_probe(features, labels, regularization=0.05)
    standardised = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    reference = LogisticRegression(C=0.05, tol=1e-8, max_iter=1000).fit(standardised, labels.numpy())
    torch.testing.assert_close(probe.weight, torch.from_numpy(reference.coef_).float(), atol=5e-3, rtol=0)
    assert (probe.predict(features).numpy() == reference.predict(standardised)).mean() > 0.99


def test_it_is_fitted_within_a_validation_too():
    features, labels = separable()
    with torch.inference_mode():
        inside = fit_linear_probe(features * 1.0, labels + 0)
    assert torch.equal(inside.weight, fit_linear_probe(features, labels).weight)


def noisy(count, seed=0):
    """Two hundred features, each of which tells very little of the class."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.randn(count, 200, generator=generator), torch.arange(count) % 2
    features += 0.15 * labels[:, None]
    return features, labels


def test_the_chosen_strength_is_stronger_where_features_are_many_and_noisy():
    features, labels = noisy(100)
    test, truth = noisy(4000, seed=1)
    chosen = fit_linear_probe(features, labels, "chosen")
    assert choose_regularization(features, labels) <= 0.01
    assert chosen.accuracy(test, truth) > fit_linear_probe(features, labels).accuracy(test, truth) + 0.01
    # And none where every sample counts: the classes are as a line parts them.
    assert choose_regularization(*separable()) >= 0.1


def test_where_nothing_can_be_chosen_the_strength_is_one():
    assert choose_regularization(torch.randn(4, 3), torch.arange(4)) == 1.0
    fit_linear_probe(torch.randn(3, 2), torch.tensor([0, 0, 1]), "chosen")
