"""Norms of gradients and steps, against what the optimiser was seen to do."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.callbacks import StepSizes


class SgdModule(ToyModule):
    """Its steps are known."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seen(Callback):
    """Notes gradients and weights of each step, by its number."""

    def __init__(self):
        self.gradients, self.weights = {}, {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        step = trainer.global_step + 1
        self.gradients[step] = [one.grad.clone() for one in pl_module.parameters()]
        self.weights[step] = pl_module.layer.weight.detach().clone()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.setdefault(trainer.global_step + 1, pl_module.layer.weight.detach().clone())


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_norms_are_those_of_the_step(tmp_path, clip):
    torch.manual_seed(0)
    seen = Seen()
    trainer = make_trainer(
        tmp_path,
        [seen, StepSizes()],
        max_steps=6,
        log_every_n_steps=3,
        accumulate_grad_batches=2,
        gradient_clip_val=clip,
    )
    trainer.fit(SgdModule(), ToyData())
    client, run_id = trainer.logger.experiment, trainer.logger.run_id
    norms = {one.step: one.value for one in client.get_metric_history(run_id, "train/gradient_norm")}
    ratios = {one.step: one.value for one in client.get_metric_history(run_id, "train/update_ratio")}
    # Also before the first report: a shorter training has figures too.
    assert set(norms) == set(ratios) == {1, 2, 3, 6}
    for step, norm in norms.items():
        expected = torch.cat([one.flatten() for one in seen.gradients[step]]).norm()
        assert norm == pytest.approx(float(expected), rel=1e-5)
        before = seen.weights[step]
        gradient = seen.gradients[step][0] * (1.0 if clip is None else clip / expected)
        assert ratios[step] == pytest.approx(float(0.1 * gradient.norm() / before.norm()), rel=1e-3)


def test_large_models_are_compared_by_some_rows_of_each_matrix(monkeypatch):
    monkeypatch.setattr("lit_pretrain.callbacks.step_sizes.MOST_ELEMENTS", 100)
    from lit_pretrain.callbacks.step_sizes import rows_of_matrices

    matrices = [torch.nn.Parameter(torch.randn(5, 5)) for _ in range(12)]
    vector = torch.nn.Parameter(torch.zeros(5))
    for parameter in (*matrices, vector):
        parameter.grad = torch.zeros_like(parameter)
    matrices[4].grad = None
    rows = list(rows_of_matrices([vector, *matrices]))
    # 275 elements of eleven that move, of which every third row makes about a hundred.
    moving = matrices[:4] + matrices[5:]
    assert sum(part.numel() for part in rows) == 110
    for part, matrix in zip(rows, moving, strict=True):
        assert torch.equal(part, matrix[[0, 3]])
        # What they are compared with later is what the step has made of them.
        assert part.data_ptr() == matrix.data_ptr()
