"""Pictures decoded as they are asked for: the same as those kept, and what stands in for damaged ones."""

import numpy
import pytest
import torch
from picture_files import make_rows, pixels_of, png

from lit_pretrain.data.images.image_cache import open_or_build
from lit_pretrain.data.images.image_dataset import ImageDataset
from lit_pretrain.data.images.image_reader import ESTIMATED_ON, ImageReader
from lit_pretrain.data.images.image_source import EncodedPictures
from lit_pretrain.data.images.pictures import Square
from lit_pretrain.data.loading import EpochBatchSampler, ResumableDataLoader
from lit_pretrain.errors import UserError


def pictures_of(count=12, damaged=()):
    rows = make_rows(count).select_columns(["picture"])
    contents = [b"damaged" if row in damaged else png(pixels_of(row)) for row in range(count)]
    data = [{"picture": {"bytes": content, "path": None}} for content in contents]
    return EncodedPictures(rows.from_list(data), "picture", None, "it", "0")


def test_it_gives_what_the_cache_gives(tmp_path):
    pictures = pictures_of(40)
    reader, cache = (
        ImageReader(pictures, Square(8), "error"),
        open_or_build(pictures, Square(8), "error", tmp_path / "a"),
    )
    members, indices = numpy.arange(3, 40), numpy.random.default_rng(0).permutation(37)
    for (images, places), (expected, expected_places) in [
        (reader.gather(members, indices), cache.gather(members, indices))
    ]:
        assert torch.equal(images, expected) and numpy.array_equal(places, expected_places)
    # So few pictures are all looked at.
    assert {name: reader.facts[name] for name in ("grey_share", "mean", "std", "pictures")} == {
        name: cache.facts[name] for name in ("grey_share", "mean", "std", "pictures")
    }


def test_a_damaged_picture_is_replaced_by_the_next_member(capsys):
    reader = ImageReader(pictures_of(12, damaged=(4, 6, 10, 11)), Square(8), "skip")
    # Pictures 5, 7 and 9 belong to another part of the data.
    members = numpy.array([0, 4, 6, 8, 10])
    images, places = reader.gather(members, numpy.array([0, 1, 4, 2, 1]))
    assert places.tolist() == [0, 8, 0, 8, 8]
    for image, place in zip(images, places, strict=True):
        assert numpy.array_equal(image, pixels_of(place).transpose(2, 0, 1))
    assert reader.skipped == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines] == [" row 4", " row 6", " row 10"]
    dataset = ImageDataset(reader, members, labels=numpy.arange(12) * 10)
    batch = dataset.__getitems__([(0, 1)])
    assert batch["sample_id"].tolist() == [8] and batch["label"].tolist() == [80]
    assert reader.skipped == 3 and not capsys.readouterr().err
    with pytest.raises(UserError, match="None of 2 pictures of it can be read"):
        reader.gather(numpy.array([4, 6]), numpy.array([0]))


def test_one_damaged_picture_may_be_an_error(monkeypatch):
    with pytest.raises(UserError, match=r"A picture cannot be read \(row 5: .*data\.corrupt to skip"):
        ImageReader(pictures_of(damaged=(5, 7)), Square(8), "error")
    with pytest.raises(UserError, match="None of the 12 pictures of it can be read"):
        ImageReader(pictures_of(damaged=range(12)), Square(8), "skip")
    with pytest.raises(UserError, match=r"row 0 is 9x9, row 0 is 8x8"):
        ImageReader(pictures_of(), Square(9, like="row 0"), "error")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_met_later_reaches_the_person_as_one_sentence(workers):
    count = 2 * ESTIMATED_ON
    # Between the pictures that are looked at first.
    unseen = next(iter(set(range(count)) - set(numpy.linspace(0, count - 1, ESTIMATED_ON).astype(int).tolist())))
    pictures = pictures_of(count, damaged=(unseen,))
    for corrupt in ("error", "skip"):
        reader = ImageReader(pictures, Square(8), corrupt)
        dataset = ImageDataset(reader, numpy.arange(count))
        loader = ResumableDataLoader(dataset, EpochBatchSampler(dataset, 64, 0, shuffle=True), workers)
        if corrupt == "error":
            with pytest.raises(UserError, match=rf"^A picture cannot be read \(row {unseen}: [^\n]*$"):
                list(loader)
        else:
            rows = torch.cat([batch["sample_id"] for batch in loader])
            # Counted here, though another process met it.
            assert len(rows) == count and unseen not in rows and reader.skipped == 1
