#!/usr/bin/env bash
# lightning 2.6.6: the gradients of a step are still there during the whole next forward pass, which makes them a part of a
# training's peak of memory.
#
# Where: automatic optimisation, any optimiser and precision.
# Behaviour: the optimiser's closure calls training_step first, then zero_grad, then backward. So while training_step
#   builds up its activations, each parameter still holds the gradient that the last step has used already: at the end of
#   the forward pass, where the activations are the most, they lie beside a whole set of gradients that nobody will read.
#   A loop by hand that ends with step and zero_grad has none there. A model of 20,000,000 parameters pays 80 MB for it.
# Seen (2026-11-30, Linux x86_64, Python 3.11), bytes of gradients in training_step, steps 1 to 3:
#   as it is:                            [0, 80000000, 80000000]
#   zero_grad after each optimizer_step: [0, 0, 0], and the same weights
# Way round: a module's own optimizer_step that calls super().optimizer_step(...) and then self.zero_grad(). Gradients of
#   accumulated batches stay, since optimizer_step is called for the last of them alone. Callbacks that look at gradients
#   in on_train_batch_end or on_before_zero_grad find none then; on_before_optimizer_step has them.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import logging

import lightning
import torch
from torch.utils.data import DataLoader

logging.disable(logging.CRITICAL)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4_000, 5_000, bias=False)
        self.held = []

    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.held.append(sum(gradient.nbytes for gradient in gradients))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Frees(Module):
    def optimizer_step(self, *arguments, **settings):
        super().optimizer_step(*arguments, **settings)
        self.zero_grad()


def trained(module):
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.randn(6, 4_000, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(data, batch_size=2))
    return module


plain, frees = trained(Module()), trained(Frees())
print(f"as it is:                            {plain.held}")
print(f"zero_grad after each optimizer_step: {frees.held}")
assert torch.equal(plain.layer.weight, frees.layer.weight)
raise SystemExit(0 if plain.held == [0, 80_000_000, 80_000_000] and frees.held == [0, 0, 0] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
