"""Ridge regression is scikit-learn's, correlations are SciPy's."""

import math

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.measures.knn import knn_mean
from lit_pretrain.measures.ridge import correlations, ridge_predict


@pytest.fixture
def numbers():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 6, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0])
    features[:, 5] = 2.5
    values = features[:, 0] + 0.02 * features[:, 1] + 0.3 * torch.randn(80, generator=generator) + 7
    return features[:60], values[:60], features[60:], values[60:]


def test_ridge_is_that_of_scikit_learn(numbers):
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, values, test, _ = numbers
    reference = make_pipeline(StandardScaler(), Ridge(alpha=2.0)).fit(train.double(), values.double())
    wanted = torch.from_numpy(reference.predict(test.double())).float()
    torch.testing.assert_close(ridge_predict(train, values, test, 2.0), wanted)


def test_neighbours_mean_is_that_of_scikit_learn(numbers):
    from sklearn.neighbors import KNeighborsRegressor

    train, values, test, _ = numbers
    reference = KNeighborsRegressor(5, metric="cosine").fit(train.double(), values.double())
    wanted = torch.from_numpy(reference.predict(test.double())).float()
    torch.testing.assert_close(knn_mean(train, values, test, 5, chunk=7), wanted)


def test_correlations_are_those_of_scipy_with_ties_too():
    from scipy.stats import pearsonr, spearmanr

    one = torch.tensor([1.0, 2.0, 2.0, 5.0, 4.0, 2.0])
    other = torch.tensor([0.5, 1.0, 3.0, 3.0, 9.0, 0.5])
    found = correlations(one, other)
    assert found["pearson"] == pytest.approx(pearsonr(one, other).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    assert math.isnan(correlations(torch.ones(6), other)["spearman"])


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(UserError, match="at least one"):
        ridge_predict(torch.zeros(0, 3), torch.zeros(0), torch.zeros(2, 3))
