"""Means of sums and counts: not means of means."""

import pytest
import torch

from lit_pretrain.modules.statistics import MeanStatistics
from lit_pretrain.objectives.objective import global_mean


def test_means_by_hand_and_what_never_occurred_is_left_out() -> None:
    metric = MeanStatistics(["loss", "accuracy", "never"])
    zero = torch.tensor(0.0)
    metric.update(
        {
            "loss": (torch.tensor(6.0), torch.tensor(3)),
            "accuracy": (torch.tensor(1), torch.tensor(3)),
            "never": (zero, zero),
        }
    )
    metric.update(
        {
            "loss": (torch.tensor(10.0), torch.tensor(1)),
            "accuracy": (torch.tensor(1), torch.tensor(1)),
            "never": (zero, zero),
        }
    )
    assert {name: float(value) for name, value in metric.compute().items()} == {"loss": 4.0, "accuracy": 0.5}
    metric.reset()
    assert metric.compute() == {}


def test_counts_that_are_small_weights() -> None:
    metric = MeanStatistics(["loss"])
    metric.update({"loss": (torch.tensor(0.1), torch.tensor(0.2))})
    assert float(metric.compute()["loss"]) == pytest.approx(0.5)
    assert float(global_mean(torch.tensor(0.1), torch.tensor(0.2), training=True)) == pytest.approx(0.5)
    assert float(global_mean(torch.tensor(0.0), torch.tensor(0), training=True)) == 0.0


def test_counts_go_on_beyond_what_16_bits_hold() -> None:
    """Made within a step of `bf16-true`, whose numbers stop at 256, where ones are counted."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric = MeanStatistics(["loss"])
    finally:
        torch.set_default_dtype(torch.float32)
    for _ in range(600):
        metric.update({"loss": (torch.tensor(4.855), torch.tensor(1))})
    assert metric.counts.item() == 600 and abs(float(metric.compute()["loss"]) - 4.855) < 1e-4
