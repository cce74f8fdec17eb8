"""Ours and transformers' BERT do the same work."""

from types import SimpleNamespace

import pytest
import torch

from lit_pretrain.commands.benchmarks.bert_step import our_module, random_batch, transformers_loss
from lit_pretrain.objectives import compute_objectives


def test_ours_and_the_peer_lose_the_same():
    """Same weights, same hidden positions."""
    arguments = SimpleNamespace(vocabulary_size=300, sequence_length=16, batch_size=4, dropout=0.0)
    batch = random_batch(arguments, torch.device("cpu"))
    module = our_module(arguments, "tiny", compiled=False)
    module.configure_model()
    outputs = compute_objectives(module.encoder, module.objectives, batch, torch.Generator())
    _, loss = transformers_loss(module, batch, compiled=False)
    assert module.sum_losses(outputs).item() == pytest.approx(loss().item(), rel=1e-4)
