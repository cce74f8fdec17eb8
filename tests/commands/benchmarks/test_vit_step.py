"""Ours and timm's ViT do the same work: the same loss from the same weights, and again after steps of training."""

import pytest
import torch

from lit_pretrain.commands.benchmarks.step import our_step, peer_step
from lit_pretrain.commands.benchmarks.vit_step import SHAPES, Shape, our_module, random_pictures, timm_loss
from lit_pretrain.objectives import compute_objectives


@pytest.mark.parametrize("class_token", [False, True])
def test_ours_and_the_peer_lose_the_same(class_token):
    torch.manual_seed(0)
    batch = random_pictures(Shape("small", 16, 4, 64, 2), 4, torch.device("cpu"))
    module = our_module(Shape("small", 16, 4, 64, 2, class_token), compiled=False)
    ours = our_step(module, batch, torch.float32)
    with torch.no_grad():
        # Far from the loss of a guess, at which models that differ would agree.
        module.objectives[0].classifier.weight.normal_()
    model, loss = timm_loss(module, batch, compiled=False)
    peer = peer_step("timm", model, loss, compiled=False, dtype=torch.float32)

    def our_loss():
        return module.sum_losses(compute_objectives(module.encoder, module.objectives, batch, None)).item()

    first = our_loss()
    assert first > 2 and first == pytest.approx(loss().item(), rel=1e-5)
    for _ in range(10):
        ours.step()
        peer.step()
    # Decay differs a little: the peer's reaches norms and biases too.
    assert our_loss() < 0.9 * first and our_loss() == pytest.approx(loss().item(), rel=1e-3)


def test_shapes_by_name_and_by_figures():
    assert Shape.of("cifar") is SHAPES["cifar"]
    encoder = Shape.of("224/16/192/3").encoder()
    assert (encoder.image_size, encoder.patch_size, encoder.width, encoder.config.depth) == (224, 16, 192, 3)
    assert encoder.patches == 196 and not encoder.class_token
