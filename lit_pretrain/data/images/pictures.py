"""Encoded pictures of any kind as squares of RGB in 8 bits.

Pillow reads the files; here is what a picture of another kind than RGB is taken to mean, and how it becomes a square:
the middle of the picture along its longer side, resized with antialiasing.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lit_pretrain.errors import UserError


class UnreadablePictureError(Exception):
    """A picture is missing, cut short, or no picture; the text names it and says why."""


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as it lies in its source.

    Attributes:
        row: Row of the source.
        name: What a person knows it by: its file, or its row.
        content: Its bytes, or the path of its file, or null if the source has none.
    """

    row: int
    name: str
    content: bytes | str | None


@dataclass(frozen=True)
class Square:
    """What pictures become.

    Attributes:
        side: Pixels of a side.
        like: Name of a picture that has this size; then all others must have it too, and nothing is resized.
    """

    side: int
    like: str | None = None


def decode(picture: EncodedPicture, square: Square) -> numpy.ndarray:
    """The pixels of a picture.

    Args:
        picture: What to decode.
        square: What it becomes: its shorter side is resized to the square's, then the middle is kept.

    Returns:
        (3, S, S) uint8.

    Raises:
        UnreadablePictureError: If it cannot be read to its end.
        UserError: If it must have the square's size and has not.
    """
    side = square.side
    with opened(picture) as image:
        if square.like is not None and image.size != (side, side):
            raise UserError(
                f"The pictures differ in size ({square.like} is {side}x{side}, {picture.name} is "
                f"{image.width}x{image.height}): set data.stored_size to the pixels of a side of the squares to keep."
            )
        try:
            # A JPEG much larger than needed is decoded at a half, a quarter or an eighth, at least twice what is kept.
            image.draft(None, (2 * side, 2 * side))
            image.load()
            rgb = to_rgb(image)
        except Exception as error:  # each format fails in its own way
            raise unreadable(picture, error) from error
    if rgb.size != (side, side):
        rgb = ImageOps.fit(rgb, (side, side), Image.Resampling.BICUBIC)
    return numpy.asarray(rgb).transpose(2, 0, 1)


def size_of(picture: EncodedPicture) -> tuple[int, int]:
    """Width and height as the header says, without decoding the pixels."""
    with opened(picture) as image:
        return image.size


def opened(picture: EncodedPicture) -> Image.Image:
    """The picture with its header read.

    Raises:
        UnreadablePictureError: If it is missing or no picture.
    """
    content = picture.content
    try:
        if content is None:
            raise ValueError("the source has nothing in its place")
        return Image.open(BytesIO(content) if isinstance(content, bytes) else content)
    except Exception as error:  # each format fails in its own way
        raise unreadable(picture, error) from error


def unreadable(picture: EncodedPicture, error: Exception) -> UnreadablePictureError:
    """What is said of a picture that cannot be read."""
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    elif isinstance(error, UnidentifiedImageError):
        reason = "it is no picture that Pillow knows"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UnreadablePictureError(f"{picture.name}: {reason}")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any picture as RGB in 8 bits, upright as its EXIF orientation says.

    Transparent parts become white. Grey of 16 bits is scaled from its whole range, 0 to 65535, and so are 32-bit
    integers, since Pillow reads 16-bit files of some formats as these; floats are taken to go from 0 to 1.
    """
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(to_eight_bits(numpy.asarray(picture)))
    if picture.has_transparency_data:
        if picture.mode in ("La", "RGBa"):
            picture = picture.convert(picture.mode.upper())
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_eight_bits(values: numpy.ndarray) -> numpy.ndarray:
    """Integers of up to 16 bits, or floats from 0 to 1, as uint8; what lies outside is cut off."""
    if values.dtype.kind == "f":
        return numpy.rint(numpy.nan_to_num(values).clip(0.0, 1.0) * 255.0).astype(numpy.uint8)
    return ((values.astype(numpy.int64).clip(0, 65535) + 128) // 257).astype(numpy.uint8)
