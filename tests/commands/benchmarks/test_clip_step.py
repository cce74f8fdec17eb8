"""Ours and open_clip's CLIP do the same work: the same loss from the same weights, and again after some steps."""

import pytest
import torch

from lit_pretrain.commands.benchmarks.clip_step import (
    SHAPES,
    ClipShape,
    clamped,
    open_clip_loss,
    open_clip_model,
    our_loss,
    our_module,
    our_step,
    random_pairs,
)
from lit_pretrain.commands.benchmarks.step import peer_step

SMALL = ClipShape("small", 16, 4, 64, 2, 32, 2)
CPU = torch.device("cpu")


@pytest.mark.parametrize("mean_length", [10, 77])
def test_ours_and_the_peer_lose_the_same(mean_length):
    torch.manual_seed(0)
    batch = random_pairs(SMALL, 6, mean_length, 200, CPU)
    model = open_clip_model(SMALL, 200)
    with torch.no_grad():
        # Far from the loss of a guess, at which models that differ would agree.
        model.logit_scale.fill_(4.0)
    module = our_module(SMALL, 200, compiled=False, peer=model)
    ours, theirs = our_loss(module, batch), open_clip_loss(model, module, batch, compiled=False)
    contestants = [
        our_step(module, ours, torch.float32),
        peer_step("open_clip", model, theirs, compiled=False, dtype=torch.float32, after=clamped(model)),
    ]

    first = ours().item()
    assert first > 2 and first == pytest.approx(theirs().item(), rel=1e-4)
    for _ in range(10):
        for contestant in contestants:
            contestant.step()
    # Decay differs a little: the peer's reaches norms, biases and the temperature too.
    assert ours().item() < 0.9 * first and ours().item() == pytest.approx(theirs().item(), rel=5e-3)


def test_captions_are_as_long_as_real_ones():
    batch = random_pairs(SMALL, 2000, 14, 200, CPU)
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(dim=1)
    # 12 pieces between the ends, with the deviation of Conceptual Captions: 12 * 4.5 / 10.3.
    assert lengths.float().mean().item() == pytest.approx(14, abs=0.3)
    assert lengths.float().std().item() == pytest.approx(5.24, abs=0.3)
    assert ids.shape[1] % 4 == 0 and ids.shape[1] - 4 < lengths.max() <= ids.shape[1]
    last = ids.gather(1, lengths[:, None] - 1)[:, 0]
    assert set(last.tolist()) == {199} and set(ids[:, 0].tolist()) == {198}
    assert torch.equal(ids.argmax(dim=1), lengths - 1) and not ids[~batch["attention_mask"]].any()


def test_shapes_by_name_and_by_figures():
    assert ClipShape.of("vit-b32") is SHAPES["vit-b32"]
    module = our_module(ClipShape.of("16/8/48/1/32/2"), 50, compiled=False)
    assert (module.vision_encoder.width, module.vision_encoder.config.resolved_heads) == (48, 3)
    assert (module.text_encoder.width, module.text_encoder.config.depth, module.embedding_width) == (32, 2, 32)
