"""Jigsaw puzzles: the permutations, the tiles, the loss by hand, and what must not tell the order."""

import itertools

import numpy
import pytest
import torch
from small_classifier import accuracy
from torch.utils.flop_counter import FlopCounterMode

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import Jigsaw
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.jigsaw import far_permutations, puzzle


def make_encoder(image_size=36, patch_size=4):
    torch.manual_seed(0)
    transformer = VisionTransformerConfig(depth=1, width=32, heads=2)
    return VisionEncoder(image_size, patch_size, transformer=transformer, class_token=False, pooling="mean")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def built(encoder, **settings):
    objective = Jigsaw(**{"permutations": 12} | settings)
    objective.build(encoder)
    return objective


def numbered(pictures=3, size=36):
    """Pictures of which every pixel tells its row and column, and which picture it is of."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    number = torch.arange(pictures).view(-1, 1, 1).expand(-1, size, size)
    return torch.stack([rows.expand_as(number), columns.expand_as(number), number], dim=1) / size


def test_permutations_differ_in_as_many_places_as_can_be():
    chosen = numpy.array(far_permutations(100))
    assert len(set(map(tuple, chosen.tolist()))) == 100 and (numpy.sort(chosen) == numpy.arange(9)).all()
    assert chosen[0].tolist() == list(range(9)) and far_permutations(12) == chosen[:12].tolist()
    distances = [(one != other).sum() for one, other in itertools.combinations(chosen, 2)]
    # Nine permutations can differ everywhere (a Latin square); two random ones differ in eight places on average.
    first = [(one != other).sum() for one, other in itertools.combinations(chosen[:9], 2)]
    assert set(first) == {9} and min(distances) >= 3 and numpy.mean(distances) > 8.0


@pytest.mark.parametrize("grey_share", [0.0, 1.0])
def test_tiles_by_hand(grey_share):
    """Each lies within its cell, with a gap to its neighbours, and its pixels are those of the picture."""
    encoder = make_encoder()
    objective, images = built(encoder, grey_share=grey_share), numbered()
    tiles = objective.tiles(images, encoder, draws())
    assert tiles.shape == (3, 9, 3, 8, 8)
    if grey_share:
        assert torch.allclose(tiles[:, :, 0], tiles[:, :, 2])
        return
    corners = (tiles[:, :, :2, 0, 0] * 36).round().long()
    cells = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), dim=-1).view(9, 2)
    inside = corners - 12 * cells
    assert (inside >= 1).all() and (inside + 8 <= 12).all() and len(inside.unique()) > 1
    places = corners.view(3, 3, 3, 2)
    assert (places[:, 1:, :, 0] - places[:, :-1, :, 0]).min() > 8 and places[..., 1].diff(dim=2).min() > 8
    top, left = corners[1, 5].tolist()
    assert torch.equal(tiles[1, 5], images[1, :, top : top + 8, left : left + 8])


def test_loss_and_places_by_hand():
    encoder = make_encoder()
    objective, batch = built(encoder), {"images": torch.rand(5, 3, 36, 36, generator=draws(1))}
    made, output = objective.make_pass(batch, encoder, draws(4)), objective(encoder, batch, draws(4))
    generator = draws(4)
    tiles = objective.tiles(batch["images"], encoder, generator)
    labels = torch.randint(0, 12, (5,), generator=generator)
    shuffled = torch.stack([tiles[row][far_permutations(12)[label]] for row, label in enumerate(labels.tolist())])
    flat = encoder.normalize(shuffled.flatten(0, 1))
    flat = (flat - flat.mean((1, 2, 3), keepdim=True)) / flat.std((1, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(made.inputs["images"], flat)
    pooled = encoder(flat).view(5, -1)
    scores = objective.head(pooled).log_softmax(dim=-1)
    assert float(output.loss) == pytest.approx(-float(scores[torch.arange(5), labels].mean().detach()), rel=1e-5)
    told = scores.argmax(dim=-1).tolist()
    places = sum(
        one == other
        for guess, label in zip(told, labels.tolist(), strict=True)
        for one, other in zip(far_permutations(12)[guess], far_permutations(12)[label], strict=True)
    )
    assert [float(one) for one in output.statistics["in_place"]] == [places, 45]


def test_a_slope_of_brightness_tells_nothing():
    """Every tile of an even slope is the same once it is standardised, so that no answer can be right but by chance."""
    encoder = make_encoder()
    slope = torch.linspace(0, 1, 36).expand(4, 3, 36, 36)
    same = built(encoder).make_pass({"images": slope}, encoder, draws()).inputs["images"]
    torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=0)
    told = built(encoder, normalize_tiles=False).make_pass({"images": slope}, encoder, draws()).inputs["images"]
    assert told.std(dim=0).max() > 0.1


def test_contours_do_not_run_on_over_a_gap():
    images = torch.rand(150, 3, 36, 36, generator=draws(2)).cumsum(dim=2).cumsum(dim=3)
    batch = {"images": images / images.amax(dim=(1, 2, 3), keepdim=True)}
    encoder = make_encoder()
    touching, apart = (
        accuracy(built(encoder, gap=gap, jitter=gap, grey_share=0.0).shortcuts(encoder, batch, draws())["borders"])
        for gap in (0.0, 0.2)
    )
    assert touching > apart + 0.1
    assert set(built(encoder).shortcuts(encoder, batch, draws())) == {"borders", "chroma_offsets"}


def test_cost_and_picture():
    encoder = make_encoder()
    objective, batch = built(encoder), {"images": torch.rand(4, 3, 36, 36)}
    features = encoder.forward_features(**objective.make_pass(batch, encoder, draws()).inputs)
    assert objective.pass_shape(encoder, 4, encoder.patches) == tuple(features.shape[:2]) == (36, 4)
    with FlopCounterMode(display=False) as counter:
        objective.logits(features, encoder)
    assert objective.forward_flops(encoder, 4, encoder.patches) == counter.get_total_flops()
    panel = objective.examples(encoder, batch, None, draws(), count=3)
    assert panel.height > 3 * 96 and panel.width > 3 * 96
    tiles = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    board = puzzle(tiles)[0, 0]
    assert board.shape == (26, 26) and board[::9, ::9].flatten().tolist() == list(range(9)) and board[8, 8] == 1.0


def test_pictures_that_are_too_small():
    Jigsaw().check_data(make_encoder(36), DataFacts(stored_size=36))
    with pytest.raises(UserError, match="Jigsaw cuts pictures of 12 pixels .* encoder.image_size 20 is the next"):
        Jigsaw().check_data(make_encoder(12), DataFacts(stored_size=36))
    with pytest.raises(UserError, match=r"Jigsaw\.jitter is 0\.6: give a number from 0 to below 0\.5"):
        Jigsaw(gap=0.5, jitter=0.6)
