"""What a search found as one picture: a block for each query, itself as the title and what is nearest below it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lit_pretrain.evaluation.search.candidates import Collection, Match
from lit_pretrain.evaluation.search.queries import Query
from lit_pretrain.objectives.picture_panels import INK, MARGIN, NEUTRAL, PAPER, Caption, grid

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SIDE, COLUMNS = 128, 5
TITLE_SIZE, TEXT_SIZE, GAP = 20, 15, 14
# Room for text: as wide as a full row of pictures.
WIDTH = COLUMNS * (SIDE + 16)
NAME_CHARACTERS = 18


def search_sheet(
    queries: Sequence[Query], matches_by_query: Sequence[Sequence[Match]], collection: Collection
) -> "Image":
    """Draw the blocks one below the other.

    Args:
        queries: At least one.
        matches_by_query: Of each.
        collection: Among what.
    """
    from PIL import Image, ImageDraw

    blocks = []
    for query, matches in zip(queries, matches_by_query, strict=True):
        blocks.append(title_of(query))
        blocks.append(pictures_of(matches, collection) if collection.are_pictures else texts_of(matches, collection))
    width = max(block.width for block in blocks) + 2 * MARGIN
    height = sum(block.height for block in blocks) + GAP * (len(queries) - 1) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for number, block in enumerate(blocks):
        if number and number % 2 == 0:
            draw.line([(MARGIN, top + GAP // 2), (width - MARGIN, top + GAP // 2)], fill=NEUTRAL)
            top += GAP
        sheet.paste(block, (MARGIN, top))
        top += block.height
    return sheet


def title_of(query: Query) -> "Image":
    """The query: its text, or its picture with its file's name."""
    from PIL import Image

    if query.picture is None:
        return lines_of([f"“{' '.join(query.name.split())}”"], TITLE_SIZE)
    picture, name = thumbnail(query.picture), lines_of([Path(query.name).name], TITLE_SIZE)
    title = Image.new("RGB", (picture.width + MARGIN + name.width, picture.height + 8), PAPER)
    title.paste(picture, (0, 0))
    title.paste(name, (picture.width + MARGIN, (picture.height - name.height) // 2))
    return title


def pictures_of(matches: Sequence[Match], collection: Collection) -> "Image":
    """Pictures with rank, score and name, five in a row."""
    starts = range(0, len(matches), COLUMNS)
    rows = [matches[start : start + COLUMNS] for start in starts]
    pictures = [[thumbnail(collection.show(match.place)) for match in row] for row in rows]
    captions = [
        [
            Caption(f"{start + place + 1}.  {match.score:.3f}\n{short(collection.names[match.place])}")
            for place, match in enumerate(row)
        ]
        for start, row in zip(starts, rows, strict=True)
    ]
    panel = grid(pictures, captions, scale=1)
    # Its own margin would put it to the right of its title.
    return panel.crop((MARGIN, MARGIN, panel.width - MARGIN, panel.height - MARGIN))


def texts_of(matches: Sequence[Match], collection: Collection) -> "Image":
    """Texts with rank and score, one below the other."""
    lines = [
        f"{rank}.  {match.score:.3f}  {' '.join(collection.names[match.place].split())}"
        for rank, match in enumerate(matches, start=1)
    ]
    return lines_of(lines, TEXT_SIZE)


def thumbnail(picture: "Image | None") -> "Image":
    """A picture whole in a square, or an empty square where it cannot be shown."""
    from PIL import Image, ImageOps

    if picture is None:
        return Image.new("RGB", (SIDE, SIDE), NEUTRAL)
    return ImageOps.pad(picture, (SIDE, SIDE), Image.Resampling.BICUBIC, PAPER)


def lines_of(texts: Sequence[str], size: int) -> "Image":
    """Texts one below the other, broken between words where they are too long for the sheet."""
    from PIL import Image, ImageDraw, ImageFont

    font = cast("FreeTypeFont", ImageFont.load_default(size))  # of a size, where FreeType is there
    lines = [line for text in texts for line in broken(text, font)]
    height = sum(font.getmetrics()) + 4
    width = max(int(font.getlength(line)) + 1 for line in lines)
    block = Image.new("RGB", (width, height * len(lines) + 8), PAPER)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, number * height + 2), line, font=font, fill=INK)
    return block


def broken(text: str, font: "FreeTypeFont") -> list[str]:
    """A text in lines that fit the sheet."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > WIDTH:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def short(name: str) -> str:
    """A file's name, its ending kept, or other words on two lines at most, short enough to stand below a picture."""
    if not Path(name).suffix:
        return "\n".join(textwrap.wrap(name, NAME_CHARACTERS, max_lines=2, placeholder=" …"))
    name = Path(name).name
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 8]}…{name[-7:]}"
