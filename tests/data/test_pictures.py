"""Pictures of every kind become the RGB squares that they mean."""

import io

import numpy
import pytest
from PIL import ExifTags, Image

from lit_pretrain.data.pictures import EncodedPicture, Square, UnreadablePictureError, decode, to_rgb
from lit_pretrain.errors import UserError


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return EncodedPicture(7, "row 7", stream.getvalue())


def pixel(picture, kind="PNG", **options):
    """Red, green and blue of the first pixel once decoded."""
    return decode(encoded(picture, kind, **options), Square(picture.width))[:, 0, 0].tolist()


def test_grey_palette_and_transparency():
    assert pixel(Image.new("L", (4, 4), 90)) == [90, 90, 90]
    assert pixel(Image.new("1", (4, 4), 1)) == [255, 255, 255]
    # Half of 100 over white: 100 * 128 / 255 + 255 * 127 / 255 = 177.2.
    assert pixel(Image.new("LA", (4, 4), (100, 128))) == [177, 177, 177]
    assert pixel(Image.new("RGBA", (4, 4), (200, 0, 0, 0))) == [255, 255, 255]
    assert pixel(Image.new("RGBA", (4, 4), (200, 10, 30, 255))) == [200, 10, 30]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(palette) == [10, 200, 30]
    assert pixel(palette, transparency=1) == [255, 255, 255]


def test_cmyk_and_sixteen_bits():
    # Full cyan, no ink else: no red.
    red, green, blue = pixel(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF")
    assert red == 0 and green == blue == 255
    deep = Image.fromarray(numpy.full((4, 4), 65535 // 2, dtype=numpy.uint16))
    assert pixel(deep) == [127, 127, 127]
    assert pixel(Image.fromarray(numpy.full((4, 4), 0.25, dtype=numpy.float32)), "TIFF") == [64, 64, 64]


def test_upright_as_the_camera_says():
    picture = Image.new("RGB", (4, 4))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    turned = decode(encoded(picture, exif=exif), Square(4))
    assert turned[:, 0, 3].tolist() == [255, 0, 0] and turned[:, 0, 0].tolist() == [0, 0, 0]


def test_the_middle_of_the_longer_side_is_kept():
    wide = Image.new("RGB", (30, 10))
    wide.paste((0, 255, 0), (10, 0, 20, 10))
    assert (decode(encoded(wide), Square(10)) == numpy.array([0, 255, 0])[:, None, None]).all()
    assert decode(encoded(wide), Square(5)).shape == (3, 5, 5)


def test_what_cannot_be_read_is_named():
    generator = numpy.random.default_rng(0)
    whole = encoded(Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=numpy.uint8)))
    cut_short = EncodedPicture(7, "cat.png", whole.content[: len(whole.content) // 2])
    for broken, words in (
        (cut_short, "cat.png: "),
        (EncodedPicture(3, "row 3", b"no picture"), "row 3: it is no picture"),
        (EncodedPicture(3, "gone.png", "gone.png"), "gone.png: there is no such file"),
        (EncodedPicture(3, "row 3", None), "row 3: the source has nothing in its place"),
    ):
        with pytest.raises(UnreadablePictureError, match=words):
            decode(broken, Square(32))
    with pytest.raises(UserError, match="differ in size .*first is 64x64, row 7 is 32x32.*data.stored_size"):
        decode(whole, Square(64, like="first"))


def test_rgb_is_left_alone():
    picture = Image.new("RGB", (2, 2), (1, 2, 3))
    assert to_rgb(picture) is picture
