"""Panels for a person to look at: a grid of small pictures with captions, right answers in green and wrong ones in red.

Pillow is imported when a panel is drawn, not before: runs on text import the objectives too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

# Green and vermillion of Okabe and Ito's palette, which colour-blind people tell apart too.
RIGHT, WRONG = (0, 158, 115), (213, 94, 0)
INK, PAPER, NEUTRAL = (40, 40, 40), (255, 255, 255), (215, 215, 215)
FONT_SIZE, MARGIN, GAP, FRAME = 13, 12, 10, 3
SHOWN_SIDE = 96


@dataclass(frozen=True)
class Caption:
    """What stands below a picture.

    Attributes:
        text: One line, or several parted by line breaks.
        right: Whether the picture shows a right answer (green) or a wrong one (red); null for neither.
    """

    text: str = ""
    right: bool | None = None


def grid(
    rows: Sequence[Sequence["Tensor | Image | None"]],
    captions: Sequence[Sequence[Caption | str | None]] | None = None,
    headings: Sequence[str] | None = None,
    scale: int | None = None,
) -> "Image":
    """Draw pictures in rows and columns.

    Args:
        rows: Pictures of each row: tensors (3 or 1, h, w) in [0, 1] (what lies outside is clipped), Pillow pictures, or
            null for an empty place. Rows may have different lengths.
        captions: What stands below each picture, in the same arrangement; null for nothing.
        headings: What stands above each column; null for nothing.
        scale: Factor by which pictures are enlarged, each pixel becoming a square; null takes the smallest that shows
            the largest picture with at least 96 pixels on its longer side.

    Returns:
        The panel, RGB. Columns are as wide as their widest picture, caption or heading, so that no text is cut.
    """
    from PIL import Image

    pictures = [[None if cell is None else to_image(cell) for cell in row] for row in rows]
    if scale is None:
        largest = max((max(one.size) for row in pictures for one in row if one is not None), default=SHOWN_SIDE)
        scale = -(-SHOWN_SIDE // largest)
    if captions is None:
        captions = [[None] * len(row) for row in rows]
    cells = [
        [make_cell(picture, caption, scale) for picture, caption in zip(row, texts, strict=True)]
        for row, texts in zip(pictures, captions, strict=True)
    ]
    if headings:
        cells.insert(0, [make_cell(None, heading, scale) for heading in headings])

    columns = max((len(row) for row in cells), default=0)
    widths = [max((row[x].width for row in cells if x < len(row)), default=0) for x in range(columns)]
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    width = sum(widths) + GAP * (columns - 1) + 2 * MARGIN
    panel = Image.new("RGB", (width, sum(heights) + GAP * (len(cells) - 1) + 2 * MARGIN), PAPER)
    top = MARGIN
    for row, height in zip(cells, heights, strict=True):
        left = MARGIN
        for cell, column_width in zip(row, widths, strict=False):
            panel.paste(cell, (left + (column_width - cell.width) // 2, top))
            left += column_width + GAP
        top += height + GAP
    return panel


def to_image(picture: "Tensor | Image") -> "Image":
    """An RGB Pillow picture of a tensor (3 or 1, h, w) in [0, 1], or of a Pillow picture."""
    from PIL import Image

    if not isinstance(picture, Tensor):
        return picture.convert("RGB")
    values = picture.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def make_cell(picture: "Image | None", caption: Caption | str | None, scale: int) -> "Image":
    """One place of the grid: a picture, enlarged and framed, with its caption centred below."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    caption = caption if isinstance(caption, Caption) else Caption(caption or "")
    colour = {None: NEUTRAL, True: RIGHT, False: WRONG}[caption.right]
    if picture is not None:
        enlarged = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        picture = ImageOps.expand(enlarged, FRAME, colour)
    font = cast("FreeTypeFont", ImageFont.load_default(FONT_SIZE))  # of a size, where FreeType is there
    # Lines have the font's height, not their letters', so that the captions of a row stand on one line.
    lines = caption.text.splitlines()
    line_height = sum(font.getmetrics()) + 2
    text_width = max((math.ceil(font.getlength(line)) for line in lines), default=0)
    picture_width, picture_height = (0, 0) if picture is None else picture.size
    width, height = max(picture_width, text_width), picture_height + line_height * len(lines)
    cell = Image.new("RGB", (max(width, 1), max(height, 1)), PAPER)
    if picture is not None:
        cell.paste(picture, ((cell.width - picture_width) // 2, 0))
    draw = ImageDraw.Draw(cell)
    for number, line in enumerate(lines):
        left = (cell.width - font.getlength(line)) / 2
        ink = INK if caption.right is None else colour
        draw.text((left, picture_height + line_height * number + 1), line, font=font, fill=ink)
    return cell
