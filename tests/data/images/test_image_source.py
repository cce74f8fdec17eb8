"""Pictures from every kind of source a person has, and what they can get wrong."""

import gzip
import io
import json
import os
import tarfile

import datasets
import numpy
import pyarrow.parquet
import pytest
from picture_files import CLASSES, make_rows, pixels_of, png, write_folder, write_parquet

from lit_pretrain.data.images.image_source import ImageSource, open_pictures
from lit_pretrain.data.images.pictures import Square, decode
from lit_pretrain.data.pairs.pair_source import open_captions
from lit_pretrain.data.sources import open_source
from lit_pretrain.errors import UserError


def opened(tmp_path, path, **settings):
    return open_pictures(ImageSource(str(path) if path else None, **settings), tmp_path / "cache")


def check_all(pictures, count=12):
    """The pictures that picture_files makes, in order."""
    assert len(pictures) == count and len(pictures.fingerprint) == 16
    for number, picture in enumerate(pictures.read(range(count))):
        assert picture.row == number
        assert numpy.array_equal(decode(picture, Square(8)), pixels_of(number).transpose(2, 0, 1))


def test_tables_with_pictures_in_them(tmp_path):
    rows = make_rows()
    write_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    for name in ("a.parquet", "saved", "splits"):
        pictures = opened(tmp_path, tmp_path / name, label_column="label")
        check_all(pictures)
        assert pictures.labels.classes == CLASSES and pictures.labels.values.tolist() == [0, 1, 2] * 4
        assert pictures.read([5])[0].name == "row 5 (005.png)"
    check_all(opened(tmp_path, "parquet", data_files=str(tmp_path / "*.parquet"), image_column="picture"))
    check_all(opened(tmp_path, tmp_path / "a.parquet", max_pictures=5), 5)


def test_parquet_that_other_libraries_wrote(tmp_path):
    content = [png(pixels_of(number)) for number in range(12)]
    table = {"picture": [{"bytes": one, "path": None} for one in content], "content": content, "id": list(range(12))}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    for column in (None, "picture", "content"):
        pictures = opened(tmp_path, tmp_path / "a.parquet", image_column=column)
        check_all(pictures)
        assert pictures.read([5])[0].name == "row 5"


def test_a_folder(tmp_path):
    folder = write_folder(tmp_path / "pictures")
    (folder / "about.txt").write_text("Not a picture.")
    (folder / "all" / "blue" / "list.csv").write_text("number\n1\n")
    order = [int(name[:3]) for label in CLASSES for name in sorted(os.listdir(folder / "all" / label)) if "png" in name]
    unlabelled, pictures = opened(tmp_path, folder), opened(tmp_path, folder, label_column="label")
    assert unlabelled.labels is None
    assert pictures.labels.classes == CLASSES and pictures.labels.values.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for number, picture in zip(order, pictures.read(range(12)), strict=True):
        assert picture.name.endswith(f"{number:03}.png")
        assert numpy.array_equal(decode(picture, Square(8)), pixels_of(number).transpose(2, 0, 1))
    patterns = str(folder / "all" / "red" / "*.png")
    assert len(opened(tmp_path, None, data_files=patterns)) == 4
    assert len(opened(tmp_path, "imagefolder", data_files=[patterns, str(folder / "all" / "blue")])) == 8


def test_a_flat_folder_whatever_its_files_are_called(tmp_path):
    names = ["b [1].png", "a*.PNG", "ü?.png"]
    for number, name in enumerate(sorted(names)):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name).write_bytes(png(pixels_of(number)))
    check_all(opened(tmp_path, tmp_path / "flat"), 3)
    # A choice of directories is often made by links.
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "kind").symlink_to(tmp_path / "flat", target_is_directory=True)
    check_all(opened(tmp_path, tmp_path / "linked"), 3)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_table_takes_the_place_of_folders(tmp_path, kind, capsys):
    folder = write_folder(tmp_path / "pictures")
    names = [f"{CLASSES[number % 3]}/{number:03}.png" for number in range(11)]
    words = ["None", "NA", "null"] if kind == "csv" else ["b", "a", "c"]
    rows = {"file_name": names, "label": [words[number % 3] for number in range(11)], "text": names}
    table = datasets.Dataset.from_dict(rows)
    write = {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind]
    write(str(folder / "all" / f"metadata.{kind}"))
    data = open_source(ImageSource(str(folder)), tmp_path / "cache").data.cast_column(
        "image", datasets.Image(decode=False)
    )
    expected = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "theirs"))
    expected = expected.cast_column("image", datasets.Image(decode=False))
    assert data.column_names == expected.column_names and data["text"][:] == expected["text"][:] == names
    assert [one["path"] for one in data["image"]] == [one["path"] for one in expected["image"]]
    pictures = opened(tmp_path, folder, label_column="label")
    check_all(pictures, 11)
    assert pictures.labels.classes == sorted(words)
    assert [pictures.labels.classes[one] for one in pictures.labels.values] == rows["label"]
    assert "1 of the 12 pictures" in capsys.readouterr().err
    captions = open_captions(ImageSource(str(folder)), ["text"], tmp_path / "cache")
    assert captions.data["caption"][:] == names
    # What it tells is no part of the pictures, but of the captions.
    changed = datasets.Dataset.from_dict(rows | {"text": names[::-1]})
    getattr(changed, write.__name__)(str(folder / "all" / f"metadata.{kind}"))
    assert opened(tmp_path, folder).fingerprint == pictures.fingerprint
    assert open_captions(ImageSource(str(folder)), ["text"], tmp_path / "cache").fingerprint != captions.fingerprint


def test_captions_beside_pictures_and_inside_json(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for number in range(3):
            contents = {"png": png(pixels_of(number)), "txt": f"text {number}\n".encode()}
            contents["json"] = json.dumps({"caption": f"caption {number}", "more": {"tags": ["a", "b"]}}).encode()
            for kind, content in contents.items():
                (folder / f"{number}.{kind}").write_bytes(content)
                entry = tarfile.TarInfo(f"{number}.{kind}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    for source in (ImageSource(str(folder)), ImageSource(str(tmp_path / "a.tar"))):
        captions = {
            column: open_captions(source, [column], tmp_path / "cache")
            for column in ("txt", "json.caption", "json.more.tags")
        }
        assert [one.strip() for one in captions["txt"].data["caption"]] == ["text 0", "text 1", "text 2"]
        assert captions["json.caption"].data["caption"][:] == ["caption 0", "caption 1", "caption 2"]
        assert captions["json.more.tags"].data["caption"][:] == ["a", "b"] * 3
        with pytest.raises(UserError, match=r"no column 'json\.captoin'"):
            open_captions(source, ["json.captoin"], tmp_path / "cache")
    # As in the published splits of Flickr30k and COCO.
    rows = [{"image": f"{n}.png", "sentences": [{"raw": f"first {n}"}, {"raw": f"second {n}"}]} for n in range(3)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = open_captions(ImageSource(str(folder / "list.jsonl")), ["sentences.raw"], tmp_path / "cache")
    assert listed.data["caption"][:] == [f"{which} {n}" for n in range(3) for which in ("first", "second")]
    (folder / "list.jsonl").unlink()
    before = open_captions(ImageSource(str(folder)), ["txt"], tmp_path / "cache").fingerprint
    (folder / "1.txt").write_text("Another.")
    (folder / "2.txt").unlink()
    after = open_captions(ImageSource(str(folder)), ["txt"], tmp_path / "cache")
    assert after.data["caption"][:] == ["text 0", "Another.", None] and after.fingerprint != before
    with pytest.raises(UserError, match=r"it has image, label, txt \(beside the pictures\), json \(beside"):
        open_captions(ImageSource(str(folder)), None, tmp_path / "cache")


def test_a_metadata_table_above_splits(tmp_path):
    (tmp_path / "pictures").mkdir()
    names = [f"{split}/{kind}/{number}.png" for split in ("train", "test") for kind in "ab" for number in (1, 2)]
    for number, name in enumerate(names):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(png(pixels_of(number)))
    lines = [f"{name},{name[:5].strip('/')}" for name in [*names, "train/a/gone.png"]]
    (tmp_path / "pictures" / "metadata.csv").write_text("\n".join(["file_name,kind", *lines]))
    for split, count in (("train", 5), ("test", 4)):
        data = open_source(ImageSource(str(tmp_path / "pictures"), split=split), tmp_path / "cache").data
        # A row without its picture is no row less: it is a picture that cannot be read.
        assert set(data["kind"][:]) == {split} and len(data) == count


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_tables_of_file_names(tmp_path, kind, monkeypatch):
    folder = write_folder(tmp_path / "pictures")
    names = [f"all/{CLASSES[number % 3]}/{number:03}.png" for number in range(12)]
    rows = [{"file": name, "kind": name.split("/")[1]} for name in names]
    lines = {
        "json": [json.dumps(rows)],
        "jsonl": [json.dumps(row) for row in rows],
        "csv": ["file,kind", *(f"{row['file']},{row['kind']}" for row in rows)],
    }[kind]
    # Beside the pictures, elsewhere with whole paths, elsewhere with paths from the current directory.
    (folder / f"list.{kind}").write_text("\n".join(lines))
    text = "\n".join(lines)
    (tmp_path / f"whole.{kind}").write_text(text.replace("all/", f"{folder}/all/"))
    (tmp_path / f"relative.{kind}").write_text(text)
    monkeypatch.chdir(folder)
    for table in (folder / f"list.{kind}", tmp_path / f"whole.{kind}", tmp_path / f"relative.{kind}"):
        pictures = opened(tmp_path, table, image_column="file", label_column="kind")
        check_all(pictures)
        assert pictures.labels.classes == CLASSES and pictures.labels.values.tolist() == [0, 1, 2] * 4


def write_shard(path, count=12, without=()):
    """Pictures with captions in webdataset's form."""
    with tarfile.open(path, "w") as shard:
        for number in range(count):
            files = {"png": png(pixels_of(number)), "txt": f"caption {number}".encode()}
            for ending, content in files.items():
                if (number, ending) not in without:
                    entry = tarfile.TarInfo(f"{number:03}.{ending}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def test_tar_shards(tmp_path):
    whole = write_shard(tmp_path / "a.tar")
    check_all(opened(tmp_path, tmp_path / "a.tar"))
    packed = gzip.compress(whole)
    (tmp_path / "c.tar.gz").write_bytes(packed)
    check_all(opened(tmp_path, tmp_path / "c.tar.gz"))
    for cut in (packed[:-1000], gzip.compress(whole[: whole.index(b"005.png")])):
        (tmp_path / "c.tar.gz").write_bytes(cut)
        with pytest.raises(UserError, match=r"c\.tar\.gz (cannot be unpacked|has no end).*: get it again"):
            opened(tmp_path, tmp_path / "c.tar.gz")
    # A caption is missing where `datasets` takes the columns from, another where it does not look.
    for missing in ((0, "txt"), (8, "txt")):
        write_shard(tmp_path / "b.tar", without={missing})
        captions = open_captions(ImageSource(str(tmp_path / "b.tar")), ["txt"], tmp_path / "cache").data["caption"][:]
        assert captions == [None if number == missing[0] else f"caption {number}" for number in range(12)]
    middle = whole.index(b"005.png") + 700
    for end, sentence in (
        (middle, r"a\.tar was cut short in 005\.png, after 10 whole files: get it again"),
        (whole.index(b"005.png"), r"a\.tar was cut short after 10 files: the end of the archive is missing"),
        (300, r"a\.tar is no tar archive"),
    ):
        (tmp_path / "a.tar").write_bytes(whole[:end])
        with pytest.raises(UserError, match=sentence):
            opened(tmp_path, tmp_path / "a.tar")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(UserError, match=r"empty\.tar holds no samples"):
        opened(tmp_path, tmp_path / "empty.tar")


def test_the_bundled_emoji(tmp_path):
    pictures = opened(tmp_path, None, label_column="group")
    assert len(pictures) == 1914 and len(pictures.labels.classes) == 9
    assert decode(pictures.read([0])[0], Square(64, like="the first")).shape == (3, 64, 64)


def test_the_fingerprint_follows_pictures_and_order(tmp_path):
    folder = write_folder(tmp_path / "pictures")
    (folder / "list.json").write_text(json.dumps([{"file": "all/red/002.png"}, {"file": "all/red/005.png"}]))

    def prints(root):
        table = opened(tmp_path, root / "list.json", image_column="file")
        return opened(tmp_path, root / "all").fingerprint, table.fingerprint

    first = prints(folder)
    assert prints(folder) == first and first[0] != first[1]
    assert opened(tmp_path, folder / "all", label_column="label").fingerprint == first[0]
    assert opened(tmp_path, folder / "all", max_pictures=3).fingerprint != first[0]
    moved = folder.rename(tmp_path / "moved")
    assert prints(moved) == first
    # Another picture in a file that the table names, the table being the same.
    (moved / "all" / "red" / "005.png").write_bytes(png(pixels_of(99)))
    second = prints(moved)
    assert not set(second) & set(first)
    (moved / "all" / "red" / "005.png").rename(moved / "all" / "red" / "000.png")
    assert prints(moved)[0] not in (first[0], second[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "{tmp}/missing"}, r"There is no file or directory .*missing: check data\.path"),
        ({"path": "{tmp}/empty"}, r"empty holds no file: give files of one kind \(pictures such as"),
        (
            {"path": "{tmp}/texts"},
            r"holds \.txt: .* set data\.path to imagefolder, parquet, csv, json or webdataset",
        ),
        ({"path": "{tmp}/mixed"}, r"holds \.parquet, \.png: give files of one kind"),
        ({"data_files": "{tmp}/*.webp"}, "No file matches"),
        (
            {"path": "{tmp}/a.parquet", "image_column": "pitcure"},
            r"no column 'pitcure' \(did you mean 'picture'\?\).*set data\.image_column",
        ),
        ({"path": "{tmp}/a.parquet", "image_column": "number"}, "'number' of .* holds int64, neither pictures nor"),
        ({"path": "{tmp}/two.parquet"}, r"several columns of pictures \(picture, other\): set data\.image_column"),
        ({"path": "{tmp}/none.csv"}, r"no column of pictures \(it has file, kind\): set data\.image_column"),
        ({"path": "{tmp}/a.parquet", "label_column": "colour"}, r"no column 'colour'.*set data\.label_column"),
        ({"path": "{tmp}/mixed/b.png", "label_column": "colour"}, r"no column 'colour': its columns are image, label"),
        (
            {"path": "{tmp}/uneven", "label_column": "label"},
            r"Both .*cat and .*cat/sub within it hold pictures of .*uneven, so whose name is a class is not",
        ),
        ({"path": "{tmp}/elsewhere"}, r"metadata\.csv names '\.\./a\.png', which is not below its own directory"),
        ({"path": "{tmp}/other"}, r"metadata\.csv does not say which pictures it describes \(its columns are id\)"),
        ({"path": "{tmp}/nothing.parquet"}, "has no rows: give at least one picture"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, settings, sentence):
    for name in ("empty", "texts", "mixed"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A.")
    (tmp_path / "mixed" / "b.png").write_bytes(png(pixels_of(0)))
    write_parquet(tmp_path / "mixed" / "a.parquet", 1)
    rows = make_rows(2)
    rows.to_parquet(tmp_path / "a.parquet")
    other = rows.select_columns(["picture"]).rename_column("picture", "other")
    datasets.concatenate_datasets([rows, other], axis=1).to_parquet(tmp_path / "two.parquet")
    rows.select([]).to_parquet(tmp_path / "nothing.parquet")
    (tmp_path / "none.csv").write_text("file,kind\na.png,red\n")
    for name in ("uneven/cat/1.png", "uneven/cat/sub/2.png", "uneven/dog/3.png", "elsewhere/1.png", "other/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(pixels_of(0)))
    (tmp_path / "elsewhere" / "metadata.csv").write_text("file_name\n../a.png\n")
    (tmp_path / "other" / "metadata.csv").write_text("id\n1\n")
    settings = {name: value.replace("{tmp}", str(tmp_path)) for name, value in settings.items()}
    with pytest.raises(UserError, match=sentence):
        open_pictures(ImageSource(**settings), tmp_path / "cache")
