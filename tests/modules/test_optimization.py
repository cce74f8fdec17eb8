"""Parameter groups and schedules, against values computed by hand."""

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules.optimization import (
    AdamWConfig,
    ScheduleConfig,
    TrainedPart,
    layer_parts,
    layers_of,
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


def test_constant_then_a_decay_by_the_root_by_hand() -> None:
    config = ScheduleConfig("constant_then_decay", warm_up=0.2, decay=0.4, decay_shape="sqrt")
    assert factors(config, 10) == [0.5] + [1.0] * 6 + [0.5, 0.292893, 0.133975]
    with pytest.raises(UserError, match="decay_shape is sqrt, and schedule.shape cosine has no decay of its own"):
        ScheduleConfig("cosine", decay_shape="sqrt")


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant_then_decay"])
@pytest.mark.parametrize("warm_up", [0.0, 0.2, 1.0])
def test_by_the_clock_as_by_many_steps(shape: str, warm_up: float) -> None:
    settings = {"warm_up": warm_up, "decay": 0.0 if warm_up == 1.0 else 0.4, "final": 0.1}
    by_steps, by_clock = ScheduleConfig(shape, **settings), ScheduleConfig(shape, **settings, budget="1h")
    for step in range(10_000):
        assert by_clock.factor_at(step / 10_000) == pytest.approx(by_steps.factor(step, 10_000), abs=2e-3)
    assert by_clock.factor_at(1.0) == pytest.approx(0.1)


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


SMALL = {"width": 16, "heads": 2}


def make_text(depth: int, order: str, pooling: str) -> TextEncoder:
    """An encoder of texts."""
    transformer = TransformerConfig(depth=depth, norm_order=order, **SMALL)
    return TextEncoder(30, transformer=transformer, pooling=pooling, causal=pooling == "end_of_text")


def make_vision(depth: int, order: str, pooling: str) -> VisionEncoder:
    """An encoder of pictures with everything that is learned beside its blocks."""
    transformer = VisionTransformerConfig(depth=depth, norm_order=order, **SMALL)
    settings = {"class_token": True, "registers": 2, "norm_after_pooling": True}
    return VisionEncoder(8, 4, transformer=transformer, pooling=pooling, **settings)


TEXTS = [(make_text, depth, pooling) for depth in (0, 3) for pooling in ("cls", "mean", "pooler", "map", "end_of_text")]
PICTURES = [(make_vision, 3, pooling) for pooling in ("cls", "mean", "map")]


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize(("make", "depth", "pooling"), TEXTS + PICTURES)
def test_layers_have_rates_of_their_own_each_parameter_once(make, depth, pooling, order) -> None:
    encoder, head = make(depth, order, pooling), torch.nn.Linear(16, 5)
    parts = [TrainedPart(head, 10.0), *layer_parts(encoder, 0.5)]
    groups = make_optimizer(parts, AdamWConfig(learning_rate=0.8, weight_decay=0.3)).param_groups

    named = {f"encoder.{name}": one for name, one in encoder.named_parameters()} | dict(head.named_parameters())
    found = {id(one): group for group in groups for one in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(named) == len(found)
    # Head 8, what follows the blocks 0.8; three blocks 0.4, 0.2, 0.1, embeddings 0.05; without a block embeddings 0.4.
    for name, one in named.items():
        if name.startswith("encoder.embeddings"):
            rate = 0.8 * 0.5 ** (depth + 1)
        elif name.startswith("encoder.transformer.blocks"):
            rate = 0.8 * 0.5 ** (depth - int(name.split(".")[3]))
        else:
            rate = 0.8 if name.startswith("encoder.") else 8.0
        assert found[id(one)]["lr"] == pytest.approx(rate), name
        vector = one.ndim == 1 or name.endswith((".latent", ".class_token", ".registers", "embeddings.position"))
        assert found[id(one)]["weight_decay"] == (0.0 if vector else 0.3), name
    # Without a factor of its own the head is of the last layer, whether the encoder has anything there or not.
    parts[0] = TrainedPart(head)
    rates = {group["lr"] for group in make_optimizer(parts, AdamWConfig()).param_groups}
    assert len(rates) == depth + 2
    assert set(layers_of(encoder).values()) | {depth + 1} == set(range(depth + 2))


def test_no_weight_decay_is_heard_wherever_it_is_said() -> None:
    encoder = make_vision(1, "pre", "map")
    groups = make_optimizer([torch.nn.Sequential(encoder)], AdamWConfig(weight_decay=0.3)).param_groups
    (spared,) = [group["params"] for group in groups if group["weight_decay"] == 0.0]
    assert {id(dict(encoder.named_parameters())[name]) for name in encoder.no_weight_decay()} < set(map(id, spared))
    assert len(encoder.no_weight_decay()) == 4


def test_a_state_of_other_groups_is_refused() -> None:
    def optimizer(depth: int, layer_decay: float = 1.0) -> torch.optim.Optimizer:
        encoder = make_text(depth, "pre", "mean")
        made = make_optimizer([TrainedPart(torch.nn.Linear(16, 5)), *layer_parts(encoder, layer_decay)], AdamWConfig())
        for group in made.param_groups:
            for one in group["params"]:
                one.grad = torch.ones_like(one)
        made.step()
        return made

    saved = optimizer(1).state_dict()
    for group in saved["param_groups"]:
        del group["rate_factor"]  # as of an earlier version
    fitting = optimizer(1, 0.5)
    fitting.load_state_dict(saved)
    assert [group["rate_factor"] for group in fitting.param_groups] == [1.0] * 2 + [0.25] * 2 + [0.5] * 2 + [1.0]
    for other in (optimizer(2), make_optimizer([make_text(1, "pre", "mean")], AdamWConfig())):
        with pytest.raises(UserError, match="optimiser state is of other parameter groups"):
            other.load_state_dict(saved)
    wider = make_optimizer([torch.nn.Linear(3, 4)], AdamWConfig())
    with pytest.raises(UserError, match="optimiser state is of other parameter groups"):
        narrow = make_optimizer([torch.nn.Linear(2, 4)], AdamWConfig())
        for one in (narrow.param_groups[0]["params"][0], narrow.param_groups[1]["params"][0]):
            one.grad = torch.ones_like(one)
        narrow.step()
        wider.load_state_dict(narrow.state_dict())
