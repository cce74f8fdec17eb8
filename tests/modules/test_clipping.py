"""Gradients are clipped in every precision that a CPU can run, with a fused optimiser."""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from toy_training import ToyModule

from lit_pretrain.modules.clipping import clip_gradients


@pytest.mark.parametrize("plugin", [Precision(), MixedPrecision("bf16-mixed", "cpu")], ids=["fp32", "bf16"])
def test_norm_and_value_by_hand(plugin):
    trainer = Trainer(accelerator="cpu", devices=1, plugins=plugin, logger=False, enable_checkpointing=False)
    module = ToyModule()
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    def clipped(value, algorithm):
        module.layer.weight.grad = torch.tensor([[3.0, 4.0, 0, 0, 0, 0, 0, 0]])
        module.layer.bias.grad = torch.tensor([12.0])
        clip_gradients(trainer, optimizer, value, algorithm)
        return [*module.layer.weight.grad[0, :2].tolist(), float(module.layer.bias.grad)]

    # The norm of 3, 4 and 12 is 13.
    assert clipped(1.3, "norm") == pytest.approx([0.3, 0.4, 1.2], rel=1e-4)
    assert clipped(20.0, "norm") == [3.0, 4.0, 12.0]
    assert clipped(3.5, "value") == [3.0, 3.5, 3.5]
    assert clipped(0.0, "norm") == [3.0, 4.0, 12.0]
