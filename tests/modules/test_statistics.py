"""Means of sums and counts: not means of means."""

import torch

from lit_pretrain.modules.statistics import MeanStatistics


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
