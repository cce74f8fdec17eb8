"""Losses of small batches done by hand, what becomes of duplicates, and what a person can get wrong."""

import math

import pytest
import torch
import torch.nn.functional as functional
from torch.utils._python_dispatch import TorchDispatchMode

from lit_pretrain.errors import UserError
from lit_pretrain.objectives import Contrastive, contrastive
from lit_pretrain.objectives.contrastive import Pairs

TEXTS = functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 0.9]]), dim=1)
PICTURES = functional.normalize(torch.tensor([[1.0, 0.0], [0.3, 1.0], [0.8, 1.0]]), dim=1)
# The first caption is the third's too.
TWICE = torch.tensor([5, 6, 5])
ONCE = torch.tensor([1, 2, 3])


def compute(text_keys=ONCE, picture_keys=ONCE, **settings):
    output = Contrastive(**settings).compute(Pairs(TEXTS, PICTURES, text_keys, picture_keys))
    return float(output.loss), {name: float(total / count) for name, (total, count) in output.statistics.items()}


def logits(scale):
    return [[scale * float(text @ picture) for picture in PICTURES] for text in TEXTS]


def choice(rows, right, left_out=()):
    """Cross-entropy, written out: `right` lists each row's answers, `left_out` pairs that do not take part."""
    losses = []
    for index, row in enumerate(rows):
        total = sum(math.exp(one) for other, one in enumerate(row) if (index, other) not in left_out)
        losses.append(-sum(row[one] - math.log(total) for one in right[index]) / len(right[index]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("duplicates", ["ignore", "mask", "multi_positive"])
def test_clip_by_hand(duplicates):
    rows = logits(1 / 0.07)
    columns = [list(column) for column in zip(*rows, strict=True)]
    alike = {(0, 2), (2, 0)}
    right = {0: [0, 2], 1: [1], 2: [2, 0]} if duplicates == "multi_positive" else {index: [index] for index in range(3)}
    left_out = alike if duplicates == "mask" else ()
    expected = (choice(rows, right, left_out) + choice(columns, right, left_out)) / 2
    loss, figures = compute(text_keys=TWICE, duplicates=duplicates)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert figures["loss_over_chance"] == pytest.approx(expected / math.log(3), rel=1e-5)
    assert figures["duplicate_captions"] == pytest.approx(2 / 3) and figures["duplicate_pictures"] == 0.0
    assert figures["false_negatives"] == pytest.approx(2 / 3) and figures["temperature"] == pytest.approx(0.07)


@pytest.mark.parametrize("duplicates", ["ignore", "mask", "multi_positive"])
def test_siglip_by_hand(duplicates):
    rows, alike, total = logits(10.0), {(0, 2), (2, 0)}, 0.0
    for index, row in enumerate(rows):
        for other, logit in enumerate(row):
            if duplicates == "mask" and (index, other) in alike:
                continue
            right = index == other or (duplicates == "multi_positive" and (index, other) in alike)
            total += math.log(1 + math.exp((-1 if right else 1) * (logit - 2.0)))
    # Equal pictures make the same false negatives as equal captions do.
    for keys in ({"text_keys": TWICE}, {"picture_keys": TWICE}):
        assert compute(**keys, loss="siglip", bias=-2.0, duplicates=duplicates)[0] == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("duplicates", ["ignore", "mask", "multi_positive"])
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_some_rows_at_a_time_are_as_all_at_once(loss, duplicates, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    towers = [functional.normalize(torch.randn(20, 6, generator=generator), dim=1) for _ in range(2)]
    keys = torch.randint(12, (2, 20), generator=generator)

    def everything(logits_at_a_time):
        monkeypatch.setitem(contrastive.LOGITS_AT_A_TIME, "cpu", logits_at_a_time)
        objective = Contrastive(loss=loss, duplicates=duplicates)
        leaves = [one.clone().requires_grad_() for one in towers]
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: held.append(one.numel()) or one, lambda one: one):
            output = objective.compute(Pairs(*leaves, *keys))
        gradients = torch.autograd.grad(output.loss, [*leaves, *objective.parameters()])
        return max(held), output.statistics, gradients

    most, statistics, gradients = everything(20 * 20)
    # Rows in groups of 6, 6, 6 and 2: no logits are held between the passes.
    most_in_parts, statistics_in_parts, gradients_in_parts = everything(20 * 6)
    assert most >= 20 * 20 and most_in_parts <= 20 * 2 * 6
    for name, (total, count) in statistics.items():
        torch.testing.assert_close(statistics_in_parts[name], (total, count), msg=name)
    for one, other in zip(gradients, gradients_in_parts, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_gradients_are_made_only_where_somebody_wants_them(loss, monkeypatch):
    objective = Contrastive(loss=loss)
    towers = [TEXTS.clone().requires_grad_(), PICTURES.clone().requires_grad_()]
    leaves = [*towers, *objective.parameters()]
    expected = objective.compute(Pairs(*towers, TWICE, ONCE))
    gradients = torch.autograd.grad(expected.loss, leaves)

    # Frozen parameters, and frozen towers, each without the other.
    for frozen in (leaves[:2], leaves[2:], leaves[:1]):
        for one in leaves:
            one.requires_grad_(all(one is not other for other in frozen))
        trained = [place for place, one in enumerate(leaves) if one.requires_grad]
        found = torch.autograd.grad(
            objective.compute(Pairs(*towers, TWICE, ONCE)).loss, [leaves[place] for place in trained]
        )
        for place, one in zip(trained, found, strict=True):
            torch.testing.assert_close(one, gradients[place])

    calls = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *arguments, **settings: calls.append(arguments))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = objective.compute(Pairs(towers[0] * 1, towers[1] * 1, TWICE, ONCE))
        torch.testing.assert_close(found.loss, expected.loss.detach())
        assert not found.loss.requires_grad
    for one in leaves:
        one.requires_grad_(False)
    assert not objective.compute(Pairs(*towers, TWICE, ONCE)).loss.requires_grad and not calls


@pytest.mark.parametrize(("loss", "products"), [("clip", 2), ("siglip", 1)])
def test_an_accelerator_makes_all_logits_at_once_and_none_for_a_metric_alone(loss, products, monkeypatch):
    # As on an accelerator, but for where it runs.
    at_a_time = contrastive.LOGITS_AT_A_TIME["cpu"]
    monkeypatch.delitem(contrastive.LOGITS_AT_A_TIME, "cpu")
    count, width = math.isqrt(at_a_time) + 1, 4
    towers = functional.normalize(torch.randn(2, count, width), dim=-1)
    keys = torch.arange(count)

    class Products(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, function, types, arguments=(), settings=None):
            found = function(*arguments, **(settings or {}))
            self.made += function is torch.ops.aten.mm.default and found.shape == (count, count)
            return found

    with Products() as watch, torch.no_grad():
        Contrastive(loss=loss).compute(Pairs(*towers, keys, keys))
    assert watch.made == products


def test_the_temperature_stays_within_its_bounds():
    objective = Contrastive()
    for value, bound in ((9.0, math.log(100)), (-1.0, 0.0)):
        objective.log_scale.data.fill_(value)
        objective.clamp()
        assert float(objective.log_scale) == pytest.approx(bound)
    free = Contrastive(loss="siglip")
    free.log_scale.data.fill_(9.0)
    free.clamp()
    assert float(free.log_scale) == 9.0


def test_siglip_starts_near_what_knows_nothing():
    objective = Contrastive(loss="siglip")
    objective.fit_to(64)
    assert float(objective.logit_bias) == pytest.approx(-math.log(63))
    assert objective.chance(64) == pytest.approx(math.log(64) + 63 * math.log(64 / 63))
    far = torch.eye(128)
    pairs = Pairs(far[:64], far[64:], torch.arange(64), torch.arange(64))
    assert float(objective.compute(pairs).loss) == pytest.approx(objective.chance(64), rel=1e-5)


def test_what_cannot_be():
    with pytest.raises(UserError, match="temperature is 0.0"):
        Contrastive(temperature=0.0)
    with pytest.raises(UserError, match="only siglip"):
        Contrastive(bias=-2.0)
    with pytest.raises(UserError, match="batch of 1 .*model.chunk_size"):
        Contrastive().fit_to(1)
