"""Parameter groups and schedules, against values computed by hand."""

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules.optimization import (
    AdamWConfig,
    ScheduleConfig,
    make_layerwise_optimizer,
    make_optimizer,
    make_scheduler,
)


def factors(config: ScheduleConfig, total: int) -> list[float]:
    """The factor of every step of a training."""
    return [round(config.factor(step, total), 6) for step in range(total)]


def test_linear_by_hand() -> None:
    assert factors(ScheduleConfig("linear", warm_up=2), 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_by_hand() -> None:
    expected = [1.0, 0.853553, 0.5, 0.146447]
    assert factors(ScheduleConfig("cosine", warm_up=0), 4) == expected
    assert factors(ScheduleConfig("cosine", warm_up=0, final=0.5), 4) == [round((1 + one) / 2, 6) for one in expected]


def test_constant_then_decay_by_hand() -> None:
    config = ScheduleConfig("constant_then_decay", warm_up=0.2, decay=0.4)
    assert factors(config, 10) == [0.5] + [1.0] * 6 + [0.75, 0.5, 0.25]


def test_shares_equal_steps_and_the_end_stays_at_the_end() -> None:
    assert factors(ScheduleConfig(warm_up=0.1), 50) == factors(ScheduleConfig(warm_up=5), 50)
    assert ScheduleConfig(final=0.1).factor(80, 50) == pytest.approx(0.1)


def test_negative_lengths_and_rates_are_refused() -> None:
    with pytest.raises(UserError, match="schedule.warm_up"):
        ScheduleConfig(warm_up=-1)
    with pytest.raises(UserError, match="learning_rate"):
        AdamWConfig(learning_rate=0)


def test_matrices_decay_and_vectors_do_not_each_once() -> None:
    encoder = TextEncoder(30, transformer=TransformerConfig(depth=2, width=16, heads=2))
    shared = torch.nn.ModuleList([encoder.embeddings, torch.nn.Linear(3, 4)])
    optimizer = make_optimizer([encoder, shared], AdamWConfig(weight_decay=0.3))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.3, 0.0}
    assert all(parameter.ndim > 1 for parameter in groups[0.3])
    assert all(parameter.ndim <= 1 for parameter in groups[0.0])
    held = [id(parameter) for group in groups.values() for parameter in group]
    wanted = {id(parameter) for module in (encoder, shared) for parameter in module.parameters()}
    assert len(held) == len(set(held)) and set(held) == wanted
    assert optimizer.defaults["fused"] and optimizer.defaults["eps"] == 1e-6


def test_the_scheduler_sets_the_rate_before_each_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer([torch.nn.ParameterList([parameter])], AdamWConfig(learning_rate=0.8))
    scheduler = make_scheduler(optimizer, ScheduleConfig(warm_up=2), total_steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        parameter.sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.4])


def test_layer_decay_by_hand_each_parameter_once() -> None:
    encoder = VisionEncoder(8, 4, transformer=VisionTransformerConfig(depth=3, width=16, heads=2))
    head = torch.nn.Linear(16, 5)
    optimizer = make_layerwise_optimizer(encoder, [head], AdamWConfig(learning_rate=0.8), 0.5, head_factor=10.0)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    named = {f"encoder.{name}": one for name, one in encoder.named_parameters()} | dict(head.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named) == len(rates)
    found = {name: rates[id(one)] for name, one in named.items()}
    # Head 8; final norm 0.8; blocks 0.4, 0.2, 0.1; embeddings 0.05.
    assert found["weight"] == found["bias"] == pytest.approx(8.0)
    assert found["encoder.transformer.final_norm.weight"] == pytest.approx(0.8)
    for block, rate in enumerate([0.1, 0.2, 0.4]):
        ones = [rate for name, rate in found.items() if name.startswith(f"encoder.transformer.blocks.{block}.")]
        assert ones == pytest.approx([rate] * len(ones)) and ones
    assert found["encoder.embeddings.position"] == pytest.approx(0.05)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert decays[id(encoder.embeddings.position)] == 0.0 and decays[id(head.bias)] == 0.0
    assert decays[id(head.weight)] == decays[id(encoder.transformer.blocks[0].feed_forward.expand.weight)] == 0.01
