"""What stays in float32 when everything else is brought to 16 bits."""

import pytest
import torch

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.objectives import Contrastive
from lit_pretrain.objectives.color_bins import ColorBins

KINDS = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kind", KINDS)
def test_constants_and_the_temperature_are_not_rounded(kind: torch.dtype) -> None:
    encoder = VisionEncoder(8, 2, transformer=VisionTransformerConfig(depth=1, width=8, heads=2), mean=(0.485,) * 3)
    bins, objective = ColorBins(), Contrastive("siglip", bias=-9.7)
    bins.measure(torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 60 - 30)
    exact = {"mean": encoder.mean, "prior": bins.prior, "weights": bins.weights, "log_scale": objective.log_scale}
    exact = {name: value.detach().clone() for name, value in (exact | {"bias": objective.logit_bias}).items()}
    encoder.to(kind), bins.to(kind), objective.to(kind)
    found = {"mean": encoder.mean, "prior": bins.prior, "weights": bins.weights, "log_scale": objective.log_scale}
    for name, value in (found | {"bias": objective.logit_bias}).items():
        assert value.dtype == torch.float32 and torch.equal(value, exact[name]), name
    assert {one.dtype for one in encoder.parameters()} == {kind}
    assert encoder(encoder.normalize(torch.rand(2, 3, 8, 8))).dtype == kind
    # A step that 8 bits would not hold, and the way back to doubles.
    objective.log_scale.grad = torch.ones_like(objective.log_scale)
    torch.optim.SGD([objective.log_scale], lr=1e-4).step()
    assert objective.log_scale.item() == pytest.approx(exact["log_scale"].item() - 1e-4, abs=1e-6)
    assert objective.double().log_scale.dtype == torch.float64 == encoder.double().mean.dtype


def test_only_16_bits_are_widened() -> None:
    for kind, wide in [(kind, torch.float32) for kind in KINDS] + [(torch.float64, torch.float64), (torch.long,) * 2]:
        assert at_least_float32(torch.ones(2, dtype=kind)).dtype == wide


def test_tokens_are_counted_beyond_256() -> None:
    tokens = torch.zeros(1, 300, 1, dtype=torch.bfloat16)
    tokens[0, 0] = 2048.0
    # 257 is 256 in bf16, which would make it 8.
    assert mean_pool(tokens, (torch.arange(300) < 257)[None]).item() == pytest.approx(2048 / 257, abs=0.001)
