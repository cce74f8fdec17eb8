"""Bytes that a backward pass needs, counted by hand."""

import torch

from lit_pretrain.commands.benchmarks.kept_memory import bytes_kept


def test_what_is_kept_is_counted_once_and_weights_are_not():
    model = torch.nn.Linear(4, 3, bias=False)
    inputs = torch.randn(2, 4)

    def once() -> torch.Tensor:
        return model(inputs).pow(2).sum()

    # The inputs for the weight's gradient, the outputs for the square's.
    assert bytes_kept(once, model, torch.float32) == (2 * 4 + 2 * 3) * 4
    # Of the inputs, whose memory both products share, nothing more.
    assert bytes_kept(lambda: once() + model(inputs[:1]).pow(2).sum(), model, torch.float32) == (8 + 6 + 3) * 4


def test_it_grows_with_the_batch_alone():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    counts = [bytes_kept(lambda n=n: model(torch.ones(n, 4)).sum(), model, torch.float32) for n in (1, 2, 4)]
    assert counts[1] - counts[0] > 0 and counts[2] - counts[1] == 2 * (counts[1] - counts[0])
