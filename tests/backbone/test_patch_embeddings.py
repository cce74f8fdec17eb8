"""From pictures to tokens: against a convolution, by hand, and what cannot be cut."""

import math

import pytest
import torch
from torch.nn.functional import conv2d

from lit_pretrain.backbone.patch_embeddings import PatchEmbeddings, cut_patches, sincos_positions
from lit_pretrain.errors import UserError


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same weights every time."""
    torch.manual_seed(0)


def test_patches_by_hand() -> None:
    picture = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    patches = cut_patches(picture, 2)
    assert patches.shape == (1, 6, 8)
    # The second patch of the second row: rows 2 and 3, columns 2 and 3, first channel then second.
    assert patches[0, 4].tolist() == [14, 15, 20, 21, 38, 39, 44, 45]


@pytest.mark.parametrize("patch_size", [2, 3, 8])
def test_the_product_equals_the_convolution(patch_size: int) -> None:
    embeddings = PatchEmbeddings(patch_size, 3, 16, 2, class_token=False)
    images = torch.randn(2, 3, 2 * patch_size, 2 * patch_size)
    kernel = embeddings.projection.weight.view(16, 3, patch_size, patch_size)
    expected = conv2d(images, kernel, embeddings.projection.bias, stride=patch_size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embeddings(images, with_positions=False), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embeddings(images), expected + embeddings.position, atol=1e-5, rtol=1e-5)


def test_kept_patches_carry_their_own_positions_and_the_prefix_stays() -> None:
    embeddings = PatchEmbeddings(2, 3, 16, 4, registers=2)
    images = torch.randn(3, 3, 8, 8)
    keep = torch.tensor([[5, 0, 9], [1, 2, 3], [15, 14, 0]])
    whole, kept = embeddings(images), embeddings(images, keep)
    assert whole.shape == (3, 3 + 16, 16) and kept.shape == (3, 3 + 3, 16)
    torch.testing.assert_close(kept[:, :3], whole[:, :3])
    for sample in range(3):
        torch.testing.assert_close(kept[sample, 3:], whole[sample, 3 + keep[sample]])
    # The gradient of a position is that of the patches which carry it.
    kept.sum().backward()
    counts = torch.bincount(keep.flatten(), minlength=16).float()
    torch.testing.assert_close(embeddings.position.grad[0, 3:], counts[:, None].expand(-1, 16))


def test_without_positions_equal_patches_are_equal_tokens_and_the_prefix_keeps_its_own() -> None:
    embeddings = PatchEmbeddings(2, 1, 8, 2)
    images = torch.ones(1, 1, 4, 4)
    with_positions, without = embeddings(images), embeddings(images, with_positions=False)
    torch.testing.assert_close(without[:, 1:], without[:, 1:2].expand(-1, 4, -1))
    assert not torch.allclose(with_positions[:, 1], with_positions[:, 2])
    torch.testing.assert_close(with_positions[:, 0], without[:, 0])
    torch.testing.assert_close(without[0, 0], (embeddings.class_token + embeddings.position[:, :1])[0, 0])


def test_sines_and_cosines_by_hand_and_computed_anew_for_another_grid() -> None:
    positions = sincos_positions((2, 3), 8)[0]
    assert positions.shape == (6, 8)
    # Row 1, column 2: sines of the row at two frequencies, of the column, then the cosines.
    angles = [1.0, 0.01, 2.0, 0.02]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    torch.testing.assert_close(positions[5], torch.tensor(expected))
    embeddings = PatchEmbeddings(2, 3, 8, 3, class_token=True, positions="sincos")
    assert set(embeddings.state_dict()) == {"projection.weight", "projection.bias", "class_token"}
    images = torch.randn(1, 3, 4, 6)
    tokens = embeddings(images)
    torch.testing.assert_close(tokens[:, 1:], embeddings.projection(cut_patches(images, 2)) + positions)
    torch.testing.assert_close(tokens[:, :1], embeddings.class_token)


def test_learned_positions_keep_their_gradient_on_another_grid() -> None:
    embeddings = PatchEmbeddings(2, 3, 8, 4)
    embeddings(torch.randn(1, 3, 6, 12)).square().sum().backward()
    assert embeddings.position.grad.abs().min() > 0
    # A plane is a plane on any grid: its slope is that of pixels, away from the border.
    with torch.no_grad():
        embeddings.position[0, 1:] = torch.arange(16.0).remainder(4)[:, None]
    finer = embeddings.positions_for((4, 8))[1].view(4, 8, 8)[1, 2:6, 0]
    torch.testing.assert_close(finer.diff(), torch.full((3,), 0.5), atol=0.06, rtol=0)


def test_norm_and_dropout_come_last() -> None:
    embeddings = PatchEmbeddings(2, 3, 8, 2, norm=True, dropout=0.5)
    tokens = embeddings.eval()(torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    dropped = embeddings.train()(torch.randn(200, 3, 4, 4))
    assert 0.45 < (dropped == 0).float().mean() < 0.55


def test_what_cannot_be_cut_is_one_sentence() -> None:
    embeddings = PatchEmbeddings(4, 3, 8, 2)
    with pytest.raises(UserError, match="10 x 8 pixels cannot be cut into patches of 4"):
        embeddings(torch.zeros(1, 3, 10, 8))
    with pytest.raises(UserError, match=r"\(batch, 3, height, width\) and was given \(1, 1, 8, 8\)"):
        embeddings(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"was given \(3, 8, 8\)"):
        embeddings(torch.zeros(3, 8, 8))
