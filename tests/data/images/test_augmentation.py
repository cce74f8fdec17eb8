"""Crops, flips and colours of a batch, against slices made by hand and torchvision."""

import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision_functional

from lit_pretrain.data.images.augmentation import ImageAugmentation, cut, to_float
from lit_pretrain.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, size=8, seed=1):
    return torch.randint(0, 256, (count, 3, size, size), generator=generator(seed), dtype=torch.uint8)


def test_a_cut_is_the_slice_mirrored_where_asked():
    images = pictures(2)
    found = cut(images, torch.tensor([[1, 2], [3, 0]]), 4, torch.tensor([False, True]))
    assert torch.equal(found[0], images[0, :, 1:5, 2:6])
    assert torch.equal(found[1], images[1, :, 3:7, 0:4].flip(-1))


def test_beyond_its_edges_a_picture_goes_on_as_in_a_mirror():
    images = pictures(1)
    found = cut(images, torch.tensor([[-2, 3]]), 8, torch.tensor([False]))
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    assert torch.equal(found[0], padded[0, :, 1:9, 6:14])


def test_random_crops_come_from_every_place_and_are_drawn_for_each_picture():
    # A picture whose pixels tell where they are.
    places = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(4000, 3, 8, 8)
    views = ImageAugmentation(flip=0.0).vary(places, 6, generator())
    corners = (views[:, 0, 0, 0] * 255).round().long()
    counts = torch.bincount(corners, minlength=64)
    expected = [row * 8 + column for row in range(3) for column in range(3)]
    assert sorted(counts.nonzero().flatten().tolist()) == expected
    # 4000 / 9 = 444 each, with a standard deviation of 20.
    assert counts[expected].min() > 350 and counts[expected].max() < 540


def test_the_same_generator_gives_the_same_views_and_another_one_others():
    settings = ImageAugmentation("resized", brightness=0.3, contrast=0.3, saturation=0.3)
    first, again, other = (settings.vary(pictures(), 8, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.dtype == torch.float32 and 0.0 <= first.min() and first.max() <= 1.0


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_a_batch_in_parts_is_varied_as_the_whole(crop):
    settings = ImageAugmentation(crop, padding=2, brightness=0.3, contrast=0.3, saturation=0.3)
    images = pictures(10)
    draws = settings.draw(images, 8, generator(5))
    parts = [
        settings.apply(images[rows], 8, {name: one[rows] for name, one in draws.items()})
        for rows in (slice(0, 4), slice(4, 8), slice(8, 10))
    ]
    assert torch.equal(torch.cat(parts), settings.vary(images, 8, generator(5)))


def test_half_of_the_pictures_are_mirrored():
    images = pictures(1).expand(2000, -1, -1, -1)
    views = ImageAugmentation("center", flip=0.5).vary(images, 8, generator())
    straight, mirror = to_float(images[:1]), to_float(images[:1]).flip(-1)
    same, mirrored = ((views == one).flatten(1).all(dim=1) for one in (straight, mirror))
    assert bool((same ^ mirrored).all()) and 0.45 < float(mirrored.float().mean()) < 0.55


def test_a_resized_crop_of_everything_is_the_picture():
    settings = ImageAugmentation("resized", smallest_area=1.0, flip=0.0)
    # All of the area, so only the ratio of the sides may cut something off.
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 1, 32).expand(64, 3, 32, 32)
    views = settings.vary(ramp, 32, generator())
    widths = (views[:, 0, 0, -1] - views[:, 0, 0, 0]) / (ramp[0, 0, 0, -1] / 255)
    assert widths.min() > 0.84 and widths.max() <= 1.0 and (widths > 0.999).any()


def test_a_resized_crop_takes_parts_of_the_promised_size():
    settings = ImageAugmentation("resized", smallest_area=0.25, flip=0.0)
    ramp = torch.arange(64, dtype=torch.uint8).mul(4)
    across = ramp.view(1, 1, 1, 64).expand(500, 3, 64, 64)
    down = ramp.view(1, 1, 64, 1).expand(500, 3, 64, 64)
    x, y = settings.vary(across, 64, generator()), settings.vary(down, 64, generator())
    # The ramp rises by 4 / 255 a pixel; 63 of 64 pixels lie between the first and the last.
    width, height = x[:, 0, 0, -1] - x[:, 0, 0, 0], y[:, 0, -1, 0] - y[:, 0, 0, 0]
    area = width * height / (252 / 255) ** 2
    assert 0.2 < area.min() < 0.3 and area.max() <= 1.0 and 0.55 < float(area.mean()) < 0.7
    assert float((width / height).min()) > 0.74 and float((width / height).max()) < 1.35


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_in_torchvision(name):
    images = pictures(4, 16)
    views = ImageAugmentation("center", flip=0.0, **{name: 0.5}).vary(images, 16, generator(3))
    draws = generator(3)
    torch.rand(4, generator=draws)  # the flips
    factors = 1.0 + 0.5 * (2.0 * torch.rand(4, 1, 1, 1, generator=draws) - 1.0)
    adjust = getattr(torchvision_functional, f"adjust_{name}")
    for view, image, factor in zip(views, to_float(images), factors.flatten().tolist(), strict=True):
        torch.testing.assert_close(view, adjust(image, factor), atol=2e-4, rtol=0)


def test_what_cannot_be_cropped_is_refused():
    with pytest.raises(UserError, match="8 pixels wide, smaller than the encoder's image_size of 32"):
        ImageAugmentation().check(8, 32)
    ImageAugmentation("resized").check(8, 32)
    with pytest.raises(UserError, match="augmentation.padding is 8"):
        ImageAugmentation(padding=8).check(8, 8)
    for wrong in ({"flip": 1.5}, {"padding": -1}, {"smallest_area": 0.0}, {"contrast": -0.1}):
        with pytest.raises(UserError, match=f"augmentation.{next(iter(wrong))}"):
            ImageAugmentation(**wrong)
