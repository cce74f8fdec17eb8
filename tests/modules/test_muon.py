"""Muon beside AdamW: by hand, which parameters each has, resume, two processes, what is refused."""

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from text_corpus import fit_and_save, make_data, write_corpus
from torch import nn

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining, muon
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig, TrainedPart, make_optimizer, make_scheduler
from lit_pretrain.objectives import MaskedLanguageModeling

CONFIG = AdamWConfig(learning_rate=1e-2, weight_decay=0.1, algorithm="muon")


def make_encoder(depth: int = 2) -> TextEncoder:
    """Blocks with four matrices each."""
    torch.manual_seed(0)
    return TextEncoder(30, transformer=TransformerConfig(width=16, depth=depth, heads=2), positions="rotary")


def test_matrices_of_blocks_by_torchs_muon_and_all_else_by_adamw():
    encoders = [make_encoder() for _ in range(2)]
    parts = [TrainedPart(encoders[0].embeddings, 0.5), TrainedPart(encoders[0])]
    ours = make_optimizer(parts, CONFIG, fused=False)  # as theirs: keys' biases have rounding errors for gradients
    schedule = make_scheduler(ours, ScheduleConfig(warm_up=2), 4)
    matrices = [one for name, one in encoders[1].named_parameters() if "blocks" in name and one.ndim == 2]
    assert len(matrices) == 8
    rest = [one for one in encoders[1].parameters() if not any(one is matrix for matrix in matrices)]
    rates = {id(one): 0.005 for one in encoders[1].embeddings.parameters()}
    theirs = [
        # A root mean square of 1 in the place of 0.2; the decay is that of the rate itself.
        torch.optim.Muon(matrices, lr=5e-2, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [one], "lr": rates.get(id(one), 1e-2), "weight_decay": 0.1 if one.ndim > 1 else 0.0}
                for one in rest
            ],
            eps=1e-6,
        ),
    ]
    highest = [[group["lr"] for group in optimizer.param_groups] for optimizer in theirs]
    ids = torch.randint(0, 30, (4, 8), generator=torch.Generator().manual_seed(1))
    for step in range(4):
        for encoder in encoders:
            encoder.zero_grad()
            encoder(ids).square().sum().backward()
        factor = ScheduleConfig(warm_up=2).factor(step, 4)
        for optimizer, rates_of_groups in zip(theirs, highest, strict=True):
            for group, rate in zip(optimizer.param_groups, rates_of_groups, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        ours.step()
        schedule.step()
    for (name, found), expected in zip(encoders[0].named_parameters(), encoders[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=name)
    held = {name for state in ours.state.values() for name in state}
    assert held == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}


def test_a_step_is_as_large_as_adamws():
    """So that one learning rate serves both: the root mean square of a first step, a full one of AdamW's being 1."""
    moved = []
    for algorithm in ("adamw", "muon"):
        encoder = make_encoder()
        before = [matrix.clone() for matrix in muon.block_matrices(encoder)]
        optimizer = make_optimizer([encoder], AdamWConfig(1e-2, 0.0, algorithm=algorithm))
        ids = torch.randint(0, 30, (4, 8), generator=torch.Generator().manual_seed(1))
        encoder(ids).pow(3).sum().backward()
        optimizer.step()
        after = muon.block_matrices(encoder)
        moved.append([(new - old).square().mean().sqrt().item() / 1e-2 for new, old in zip(after, before, strict=True)])
    assert all(one == pytest.approx(1.0, abs=0.05) for one in moved[0])
    # Of few texts the gradient has directions that are missing.
    assert all(0.25 < one < 1.5 for one in moved[1])


def test_resumed_bit_for_bit_by_what_wrote_the_checkpoint(tmp_path):
    corpus = write_corpus(tmp_path / "texts.json", documents=20)

    def train(directory, checkpoint=None, algorithm="muon"):
        torch.manual_seed(0)
        encoder = TextEncoder(transformer=TransformerConfig(width=16, depth=1, heads=2), positions="rotary")
        config = AdamWConfig(learning_rate=1e-2, weight_decay=0.3, algorithm=algorithm)
        module = TextPretraining(encoder, [MaskedLanguageModeling()], seed=0, optimizer=config)
        data = make_data(corpus, tmp_path, layout="segments")
        return fit_and_save(module, data, tmp_path / directory, checkpoint, accumulate_grad_batches=2)

    expected, found = train("straight"), train("resumed", tmp_path / "straight" / "step=3.ckpt")
    assert expected.keys() == found.keys() and any(name.endswith("momentum_buffer") for name in expected)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    train("adamw", algorithm="adamw")
    for algorithm, other in (("adamw", "straight"), ("muon", "adamw")):
        its = {"adamw": "muon", "muon": "adamw"}[algorithm]
        with pytest.raises(UserError, match=f"resume with optimizer.algorithm {its}"):
            train("refused", tmp_path / other / "step=3.ckpt", algorithm)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="optimizer.momentum is Muon's, and optimizer.algorithm is adamw"):
        AdamWConfig(momentum=0.9)
    with pytest.raises(UserError, match="FSDPStrategy cuts into shards: take ddp"):
        muon.check_strategy(make_encoder(), FSDPStrategy())
    for nothing in (make_encoder(0), make_encoder().requires_grad_(False), nn.Linear(2, 2)):
        with pytest.raises(UserError, match="no block is trained here: take adamw"):
            muon.check_strategy(nothing, SingleDeviceStrategy())
    muon.check_strategy(make_encoder(1), SingleDeviceStrategy())
