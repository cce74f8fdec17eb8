"""Both readers are given the same pictures, and hand over what an encoder takes."""

from argparse import Namespace

import pytest
import torch
from small_pictures import make_pictures, write_pictures
from torchvision.transforms.functional import pil_to_tensor

from lit_pretrain.commands.benchmarks.picture_input import PilPictures, picture_input
from lit_pretrain.data.images.image_source import ImageSource, open_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet", count=24)


def test_the_cache_holds_what_pillow_decodes(pictures, tmp_path):
    data = make_pictures(pictures, tmp_path)
    data.setup("fit")
    opened = open_pictures(ImageSource(str(pictures)), tmp_path)
    decoded = PilPictures([picture.content for picture in opened.read(range(24))], pil_to_tensor)
    batch = data.batch_at(0, 0)
    expected = torch.stack([decoded[int(index)] for index in batch["sample_id"]])
    assert torch.equal(batch["images"], expected)


@pytest.mark.parametrize("size", [16, 20])
def test_both_hand_over_normalised_batches(pictures, size):
    """Also where the pictures are of another size."""
    arguments = Namespace(images=str(pictures), stored_size=size, batch_size=8)
    with picture_input(arguments) as inputs:
        assert inputs.pictures == 24 and inputs.race.threads == 1
        # Five batches are more than an epoch.
        batches = [[one.step() for _ in range(5)] for one in inputs.race.contestants]
    for ours, theirs in zip(*batches, strict=True):
        assert ours.shape == theirs.shape == (8, 3, size, size) and ours.dtype == theirs.dtype == torch.float32
        assert -1 <= ours.min() < -0.2 and 0.5 < ours.max() <= 1
    # The same colours on average, but for torchvision's black beyond the edges.
    means = [torch.cat(each)[..., 6:-6, 6:-6].mean().item() for each in batches]
    assert means[0] == pytest.approx(means[1], abs=0.1)
