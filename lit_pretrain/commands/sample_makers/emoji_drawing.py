"""Pictures out of the font Noto Color Emoji, whose glyphs are bitmaps of 136 x 128 pixels."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

FONT_NAME = "Noto Color Emoji"
# The only size at which the font has bitmaps, and the box that each of them fills.
FONT_SIZE = 109
GLYPH_BOX = (0, 0, 136, 128)
SIDE = 128
SHRINKING = 2
ADVICE = "take NotoColorEmoji.ttf 2.051 of the package fonts-noto-color-emoji of Debian 13"


def open_font(path: Path) -> "FreeTypeFont":
    """The font, with the layout that joins the parts of flags and families into one glyph.

    Raises:
        UserError: If that layout is not there, or the file is not the font.
    """
    from PIL import ImageFont, features

    if not features.check("raqm"):
        raise UserError(
            "Pillow lacks its layout 'raqm', without which flags and families fall into their parts: install the "
            "library FriBiDi (apt-get install libfribidi0)."
        )
    try:
        font = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(f"{path} cannot be read as the font {FONT_NAME} ({error}): {ADVICE}.") from error
    if font.getname()[0] != FONT_NAME:
        raise UserError(f"{path} is the font {font.getname()[0]}, not {FONT_NAME}: {ADVICE}.")
    return font


def draw_pictures(font: "FreeTypeFont", names: dict[str, str]) -> dict[str, bytes]:
    """A picture of each emoji as PNG.

    Args:
        font: From `open_font`.
        names: Emoji -> its name, for messages.

    Raises:
        UserError: If the font lacks some of them.
    """
    # An unknown emoji is an empty box; an unknown sequence is several glyphs side by side.
    missing = [emoji for emoji in names if font.getbbox(emoji) != GLYPH_BOX]
    if missing:
        raise UserError(
            f"The font {font.getname()[0]} lacks {len(missing)} of the {len(names)} emoji (the first is "
            f"'{names[missing[0]]}'): {ADVICE}."
        )
    return {emoji: to_png(draw(font, emoji)) for emoji in names}


def draw(font: "FreeTypeFont", emoji: str) -> "Image":
    """One emoji on white, 64 x 64, RGB: each pixel is the mean of 2 x 2 of the bitmap's.

    The bitmaps' 4 columns at the left and at the right are empty, so their middle square has the whole drawing.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    left = (SIDE - GLYPH_BOX[2]) // 2
    ImageDraw.Draw(picture).text((left, 0), emoji, fill="black", font=font, embedded_color=True)
    return picture.reduce(SHRINKING)


def to_png(picture: "Image") -> bytes:
    """A picture as PNG without compression: parquet's, which sees many pictures at once, makes a smaller file."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=0)
    return file.getvalue()
