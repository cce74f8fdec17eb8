"""The probe learns what is linear, whatever the features' sizes, and nothing else."""

import warnings

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.measures.knn import knn_accuracy
from lit_pretrain.measures.linear_probe import choose_regularization, fit_linear_probe
from lit_pretrain.measures.ridge import ridge_predict


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


def test_the_rounding_of_a_feature_that_is_not_used_is_not_learned():
    """As of a pretrained encoder on film reviews: mean -0.0499, deviation 1e-6 beside 0.07 of half of the others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    features = 0.07 * torch.randn(400, 8, generator=generator) + 0.01 * labels[:, None]
    # By chance it tells the labels of these samples.
    unused = -0.0499 + 1e-6 * (labels + 0.1 * torch.randn(400, generator=generator))
    probe = fit_linear_probe(torch.cat([features, unused[:, None]], dim=1), labels)
    head = probe.weight / probe.scale
    assert float(head[:, -1].abs().max()) < float(head[:, :-1].abs().max())
    values = labels.float() + 0.1 * torch.randn(400, generator=generator)
    shifted = torch.cat([features, unused[:, None] + 1e-5], dim=1)
    found = ridge_predict(torch.cat([features, unused[:, None]], dim=1), values, shifted)
    assert float((found - values).abs().mean()) < 1.0


def test_noise_is_not_learned():
    features, _ = separable()
    test, truth = separable(seed=1)
    noise = torch.randint(0, 4, (len(features),), generator=torch.Generator().manual_seed(2))
    assert fit_linear_probe(features, noise).accuracy(test, truth) < 0.45


def test_one_class_is_refused():
    with pytest.raises(UserError, match="two classes"):
        fit_linear_probe(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize("regularization", [0.001, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("signal", [0.1, 0.6], ids=["overlapping", "separable"])
def test_it_is_the_logistic_regression_of_scikit_learn(classes, regularization, signal):
    """The minimum of the same objective: two classes have one weight vector, and a weak penalty is no early stop."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, classes, (600,), generator=generator)
    centres = torch.randn(classes, 24, generator=generator)
    features = signal * centres[labels] + torch.randn(600, 24, generator=generator) * torch.logspace(0, -1, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = fit_linear_probe(features, labels, regularization)
    standardised = ((features - features.mean(0)) / features.std(0, correction=0)).double()
    reference = LogisticRegression(C=regularization, tol=1e-9, max_iter=20_000).fit(standardised, labels)
    weight, bias = torch.from_numpy(reference.coef_), torch.from_numpy(reference.intercept_)
    if classes == 2:
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])

    def objective(weight, bias):
        logits = standardised @ weight.double().T + bias.double()
        squares = (weight[1] - weight[0]).square() if classes == 2 else weight.square()
        penalty = squares.double().sum() / (2 * regularization * 600)
        return float(torch.nn.functional.cross_entropy(logits, labels) + penalty)

    best = objective(weight, bias)
    assert best * (1 - 1e-6) <= objective(probe.weight, probe.bias) < best * 1.001
    if regularization == 0.001:
        torch.testing.assert_close(probe.weight.double(), weight, atol=2e-4, rtol=0)


def test_a_probe_that_stops_early_says_so():
    features, labels = separable()
    with pytest.warns(UserWarning, match="had not converged after 2 steps"):
        fit_linear_probe(features, labels, max_iterations=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    features, labels = separable()
    features[7, 2] = value
    for learn in (
        lambda: fit_linear_probe(features, labels),
        lambda: knn_accuracy(features, labels, features, labels, 4),
        lambda: knn_accuracy(features[8:], labels[8:], features, labels, 4),
        lambda: ridge_predict(features, labels.float(), features),
    ):
        with pytest.raises(UserError, match="of 1 of 400 samples are not finite .the first is sample 7."):
            learn()


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
