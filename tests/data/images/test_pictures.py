"""Pictures of every mode, by pixels worked out by hand; damaged ones; squares."""

import io

import numpy
import pytest
import torch
from picture_files import pixels_of, png
from PIL import Image, ImageFile
from torchvision.transforms import InterpolationMode, v2

from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode, size_of, to_rgb
from lit_pretrain.errors import UserError

WHITE, RED = (255, 255, 255), (255, 0, 0)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def palette(transparency=None):
    """Two pixels: colours 0 (red) and 1 (10, 20, 30) of a palette."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 10, 20, 30])
    picture.putdata([0, 1])
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


def row(mode, values):
    picture = Image.new(mode, (len(values), 1))
    picture.putdata(values)
    return picture


PGM = b"P5 3 1 65535\n" + numpy.array([0, 257, 65535], ">u2").tobytes()
MODES = {
    "1 bit": (encoded(row("1", [0, 255]), "PNG"), [(0, 0, 0), WHITE]),
    "grey": (encoded(row("L", [0, 77, 255]), "PNG"), [(0, 0, 0), (77, 77, 77), WHITE]),
    # 0.5 of 100 on white is 177.5; 51 of 255 is a fifth.
    "grey and alpha": (encoded(row("LA", [(100, 255), (100, 0), (0, 51)]), "PNG"), [(100,) * 3, WHITE, (204,) * 3]),
    "colour and alpha": (
        encoded(row("RGBA", [(10, 20, 30, 255), (10, 20, 30, 0), (255, 0, 0, 51)]), "PNG"),
        [(10, 20, 30), WHITE, (255, 204, 204)],
    ),
    "palette": (encoded(palette(), "PNG"), [RED, (10, 20, 30)]),
    "palette with a transparent colour": (encoded(palette(0), "PNG"), [WHITE, (10, 20, 30)]),
    "palette with alphas": (encoded(palette(bytes([51, 255])), "PNG"), [(255, 204, 204), (10, 20, 30)]),
    "palette of a GIF": (encoded(palette(1), "GIF"), [RED, WHITE]),
    "a transparent colour": (
        encoded(row("RGB", [RED, (1, 2, 3)]), "PNG", transparency=RED),
        [WHITE, (1, 2, 3)],
    ),
    "a transparent grey": (encoded(row("L", [9, 8]), "PNG", transparency=9), [WHITE, (8, 8, 8)]),
    # No ink, all cyan, half black.
    "CMYK": (
        encoded(row("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 128)]), "TIFF"),
        [WHITE, (0, 255, 255), (127,) * 3],
    ),
    # 128 levels of 16 bits are the last that round down.
    "16 bits": (
        encoded(Image.fromarray(numpy.array([[0, 128, 129, 257 * 99, 65535]], numpy.uint16)), "PNG"),
        [(0,) * 3, (0,) * 3, (1,) * 3, (99,) * 3, WHITE],
    ),
    "16 bits of a PGM": (PGM, [(0,) * 3, (1,) * 3, WHITE]),
    "32 bits": (
        encoded(Image.fromarray(numpy.array([[-5, 257 * 7, 70_000]], numpy.int32)), "TIFF"),
        [(0,) * 3, (7,) * 3, WHITE],
    ),
    "floats": (
        encoded(Image.fromarray(numpy.array([[-1.0, 0.2, 1.0, 7.0, numpy.nan]], numpy.float32)), "TIFF"),
        [(0,) * 3, (51,) * 3, WHITE, WHITE, (0,) * 3],
    ),
}


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_by_its_pixels(kind):
    content, expected = MODES[kind]
    picture = to_rgb(Image.open(io.BytesIO(content)))
    assert picture.mode == "RGB"
    assert [tuple(one) for one in numpy.asarray(picture)[0].tolist()] == expected


def test_premultiplied_alpha_and_other_colour_spaces():
    rgba = Image.new("RGBA", (1, 1), (200, 100, 0, 51))
    assert to_rgb(rgba.convert("RGBa")).getpixel((0, 0)) == pytest.approx((244, 224, 204), abs=2)
    ycbcr = Image.new("RGB", (1, 1), (200, 100, 50)).convert("YCbCr")
    assert to_rgb(ycbcr).getpixel((0, 0)) == pytest.approx((200, 100, 50), abs=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(kind):
    upright = pixels_of(0)
    # What EXIF says must be done to see the stored picture upright, and how such a picture is stored.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: numpy.rot90(upright),
        7: numpy.rot90(upright.transpose(1, 0, 2), 2),
        8: numpy.rot90(upright, -1),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(numpy.ascontiguousarray(pixels)), kind, exif=exif)
        assert numpy.array_equal(decode(EncodedPicture(0, "a", content), Square(8)), upright.transpose(2, 0, 1))


def smooth(width, height):
    """Slow waves of colour, which JPEG and resizing keep."""
    x, y = numpy.meshgrid(numpy.linspace(0, 6, width), numpy.linspace(0, 6 * height / width, height))
    waves = numpy.stack([numpy.sin(x + y), numpy.cos(x - y), numpy.sin(2 * x)], axis=-1)
    return numpy.rint(127.5 + 110 * waves).astype(numpy.uint8)


@pytest.mark.parametrize("content", [png(pixels_of(3)), encoded(Image.fromarray(smooth(64, 64)), "JPEG")])
def test_what_is_cut_short_is_not_readable(content, monkeypatch):
    damaged = EncodedPicture(7, "row 7", content[: len(content) * 2 // 3])
    assert size_of(damaged) in ((8, 8), (64, 64))
    with pytest.raises(UnreadablePictureError, match="^row 7: .*truncated"):
        decode(damaged, Square(8))
    # It would be taken, in part grey, if Pillow were told not to mind.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode(damaged, Square(8)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no picture that Pillow knows"),
        (b"GIF is written here", "no picture that Pillow knows"),
        (None, "nothing in its place"),
        ("/nowhere/a.png", "there is no such file"),
    ],
)
def test_what_is_no_picture_is_named(content, reason):
    for read in (size_of, lambda picture: decode(picture, Square(8))):
        with pytest.raises(UnreadablePictureError, match=f"^row 3: .*{reason}"):
            read(EncodedPicture(3, "row 3", content))


def test_the_middle_is_kept():
    columns = numpy.repeat(numpy.array([10, 10, 90, 90, 200, 200], numpy.uint8)[None, :, None], 2, axis=0)
    wide = png(columns.repeat(3, axis=2))
    assert (decode(EncodedPicture(0, "a", wide), Square(2)) == 90).all()
    tall = png(numpy.ascontiguousarray(columns.repeat(3, axis=2).transpose(1, 0, 2)))
    assert (decode(EncodedPicture(0, "a", tall), Square(2)) == 90).all()


def test_resizing_agrees_with_torchvision():
    pixels = smooth(90, 60)
    reference = v2.Compose([v2.Resize(20, InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(20)])
    expected = reference(torch.from_numpy(pixels).permute(2, 0, 1)).numpy().astype(int)
    ours = decode(EncodedPicture(0, "a", png(pixels)), Square(20)).astype(int)
    assert ours.shape == (3, 20, 20) and abs(ours - expected).max() <= 2
    # Without antialiasing every other pixel of a chessboard would be picked.
    board = numpy.indices((32, 32)).sum(axis=0) % 2 * 255
    small = decode(EncodedPicture(0, "a", png(board.astype(numpy.uint8))), Square(8)).astype(int)
    assert abs(small - 127).max() < 20


def test_a_large_jpeg_is_decoded_small():
    pixels = smooth(1600, 1200)
    content = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    ours = decode(EncodedPicture(0, "a", content), Square(100)).astype(int)
    whole = decode(EncodedPicture(0, "a", png(pixels)), Square(100)).astype(int)
    assert abs(ours - whole).mean() < 1


def test_another_size_is_said_where_sizes_must_agree():
    picture = EncodedPicture(4, "row 4", png(pixels_of(0)))
    assert numpy.array_equal(decode(picture, Square(8, like="row 0")), pixels_of(0).transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"row 0 is 9x9, row 4 is 8x8\): set data\.stored_size"):
        decode(picture, Square(9, like="row 0"))
