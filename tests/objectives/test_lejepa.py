"""LeJEPA: the test of Gaussianity by hand, what its loss prefers, and views by the module's augmentation."""

import math

import pytest
import torch
from scipy.integrate import quad
from small_pictures import make_encoder

from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import DataFacts, LeJEPA
from lit_pretrain.objectives.lejepa import sigreg

SMALL = {"directions": 16, "hidden_width": 16, "projection_width": 4}


def make(**settings):
    """An objective on a small encoder."""
    torch.manual_seed(0)
    encoder, objective = make_encoder(image_size=16), LeJEPA(**SMALL | settings)
    objective.build(encoder)
    return objective, encoder


def test_gaussianity_is_the_statistic_of_epps_and_pulley():
    sample = torch.tensor([[-1.3], [0.2], [0.4], [2.5]], dtype=torch.float64)

    def difference(frequency):
        real = sum(math.cos(frequency * x) for x in sample[:, 0].tolist()) / 4 - math.exp(-(frequency**2) / 2)
        imaginary = sum(math.sin(frequency * x) for x in sample[:, 0].tolist()) / 4
        return (real**2 + imaginary**2) * math.exp(-(frequency**2) / 2)

    expected = 4 * quad(difference, -3.0, 3.0)[0]
    found = sigreg(sample[None], torch.ones(1, 1, dtype=torch.float64))
    assert float(found) == pytest.approx(expected, rel=1e-3)
    # A mirrored direction sees the same.
    assert torch.allclose(found, sigreg(sample[None], -torch.ones(1, 1, dtype=torch.float64)))


def test_gaussian_embeddings_are_preferred_to_collapsed_and_to_flat_ones():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(8, 64, generator=generator), dim=0)
    gaussian = torch.randn(1, 512, 8, generator=generator)
    flat = gaussian * torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    values = [float(sigreg(rows, directions)) for rows in (gaussian, flat, 3 * gaussian, torch.zeros(1, 512, 8))]
    # The expectation of a Gaussian sample itself does not grow with its size.
    assert values[0] < 1.5
    assert min(values[1:]) > 10 * values[0]


def test_the_loss_is_the_sum_of_its_parts_and_equal_views_have_no_invariance_loss():
    objective, encoder = make(views=2)
    objective.vary = lambda images, size, generator: images.float() / 255
    batch = {"images": torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    output = objective(encoder, batch, torch.Generator().manual_seed(2))
    means = {name: float(total / count) for name, (total, count) in output.statistics.items()}
    assert means["invariance"] == pytest.approx(0.0, abs=1e-12)
    assert means["accuracy"] == 1.0
    parts = sum(factor * means[name] for name, factor in objective.loss_factors.items())
    assert output.loss.item() == means["loss"] == pytest.approx(parts, rel=1e-6)


def test_views_are_the_augmentations_own_and_fewer_patches_are_seen_in_training_alone():
    objective, encoder = make(views=3, patch_dropout=0.5)
    objective.vary = ImageAugmentation("resized", grey=1.0).vary
    stored = torch.randint(256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0)).byte()
    batch = {"images": stored[..., 2:18, 2:18] / 255, "stored_images": stored}
    made = objective.make_pass(batch, encoder, torch.Generator().manual_seed(3))
    images = made.inputs["images"].unflatten(0, (3, 4))
    assert images.shape == (3, 4, 3, 16, 16)
    assert not torch.equal(images[0], images[1])
    torch.testing.assert_close(images[:, :, 0], images[:, :, 1])  # grey
    assert made.inputs["keep"].shape == (12, encoder.patches // 2)
    assert objective.pass_shape(encoder, 4, encoder.patches) == (12, encoder.patches // 2)
    assert "keep" not in objective.eval().make_pass(batch, encoder, torch.Generator().manual_seed(3)).inputs
    assert objective.examples(encoder, batch, None, torch.Generator().manual_seed(0), 2).width > 0


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"LeJEPA\.views is 1: give at least 2"):
        LeJEPA(views=1)
    with pytest.raises(UserError, match=r"LeJEPA\.gaussianity_share is 1\.0: give a share between 0 and 1"):
        LeJEPA(gaussianity_share=1.0)
    objective, encoder = make(patch_dropout=0.01)
    with pytest.raises(UserError, match="leaves out none: raise it or set it to 0"):
        objective.check_data(encoder, DataFacts(stored_size=16))
