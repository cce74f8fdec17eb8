"""Splits of directories are those of `datasets`, and names that are no splits are none."""

import datasets
import pytest
from picture_files import pixels_of, png

from lit_pretrain.data import ImageDataModule, LabelledDataModule
from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.sources import open_source
from lit_pretrain.data.text.document_data_module import DocumentSource
from lit_pretrain.errors import UserError

CARD = """---
configs:
- config_name: first
  default: true
  data_files:
  - {split: train, path: "part/*.csv"}
  - {split: test, path: other.csv}
  sep: ";"
- config_name: second
  data_files: other.csv
---
# A corpus
"""


def write(root, *names):
    """Files whose text, or whose picture, says what they are called."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            path.write_bytes(png(pixels_of(number)))
        elif path.suffix == ".csv":
            path.write_text(f"text\n{name}\n")
        elif path.suffix == ".parquet":
            datasets.Dataset.from_dict({"text": [name]}).to_parquet(path)
        else:
            path.write_text(CARD if name == "README.md" else name)
    return root


def rows(root, split, kind=DocumentSource, **settings):
    """What is read of a split, by the names of the files."""
    data = open_source(kind(str(root), split=split, **settings), root.parent / "cache").data
    if kind is DocumentSource:
        return sorted(text.strip() for text in data["text"][:])
    return sorted(
        one["path"].removeprefix(f"{root}/") for one in data.cast_column("image", datasets.Image(decode=False))["image"]
    )


TABLES = [
    ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
    ("train.csv", "test.csv", "notes.csv", "README.txt"),
    ("a/training/1.csv", "a/dev/1.csv", "a/dev/2.csv", "b.csv"),
    ("one.csv", "two.csv", "__pycache__/x.csv", ".ipynb_checkpoints/one.csv"),
    ("[1]/train.csv", "[1]/valid_1.csv"),
    ("README.md", "part/1.csv", "part/2.csv", "other.csv", "more.csv"),
    ("imdb/train/pos/1.txt", "imdb/train/neg/1.txt", "imdb/test/pos/1.txt"),
]


@pytest.mark.parametrize("names", TABLES, ids=range(len(TABLES)))
def test_splits_are_those_of_datasets(tmp_path, names):
    root = write(tmp_path / "clone", *names)
    expected = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "theirs"))
    for split, data in expected.items():
        assert rows(root, split) == sorted(text.strip() for text in data["text"][:])
    with pytest.raises(UserError, match=rf"has no split 'tets'.*its splits are {', '.join(expected)}; set data\.split"):
        rows(root, "tets")
    assert len(rows(root, "+".join(expected))) == sum(map(len, expected.values()))
    assert rows(root, "train[:1]") == rows(root, "train")[:1]


NESTED = ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "test/cat/5.png")
PICTURES = [
    (NESTED, ["cat", "dog"], NESTED[:2], ""),
    # Some of the folders that hold pictures are called like a split, so none is one.
    (("bus/1.png", "car/2.png", "train/3.png"), ["bus", "car", "train"], None, "train have the name of a split"),
    (("all/bus/1.png", "all/test-car/3.png"), ["bus", "test-car"], None, "all/test-car have the name of a split"),
    (("train.png", "a.png"), ["pictures"], None, "train.png have the name of a split and a.png have not"),
    # A picture above them makes no class of a split, nor does a folder of pictures beside folders of classes.
    (("train/1.png", "val/2.png", "logo.png"), ["train"], ("train/1.png",), "1 file is in none of its splits"),
    (("train/cat/1.png", "train/dog/2.png", "sheets/3.png"), ["cat", "dog"], NESTED[:2], "left out (sheets/3.png)"),
]


@pytest.mark.parametrize(("names", "classes", "expected", "told"), PICTURES, ids=range(len(PICTURES)))
def test_folders_of_pictures(tmp_path, names, classes, expected, told, capsys):
    root = write(tmp_path / "pictures", *names)
    assert rows(root, "train", ImageSource) == sorted(expected or names)
    data = open_source(ImageSource(str(root)), tmp_path / "cache").data
    assert data.features["label"].names == classes
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == bool(told)


def test_what_may_or_may_not_be_splits_is_asked(tmp_path):
    root = write(tmp_path / "pictures", "train/1.png", "test/2.png", "extra/3.png")
    with pytest.raises(
        UserError, match=r"of .*pictures, .*/?test, train have the name .* extra have not: .*data_files"
    ):
        rows(root, "train", ImageSource)
    everything = ImageSource(data_files=f"{root}/**")
    assert len(open_source(everything, tmp_path / "cache").data) == 3
    twice = write(tmp_path / "twice", "train/test/1.txt", "train/2.txt")
    with pytest.raises(UserError, match=r"train/test/1\.txt of .*twice is of the split train and of the split test"):
        rows(twice, "train")


def test_what_is_left_out_is_counted(tmp_path, capsys):
    names = [
        "a.txt",
        "b.md",
        "readme.md",
        "LICENSE.txt",
        "c.pdf",
        ".ipynb_checkpoints/a.txt",
        "._a.txt",
        "lost+found/x.md",
    ]
    root = write(tmp_path / "letters", *names)
    (root / "loop").symlink_to(root, target_is_directory=True)
    say_once.cache_clear()
    for _ in range(2):
        assert rows(root, "train") == ["a.txt", "b.md"]
    told = capsys.readouterr().err
    assert told.count("3 files are hidden, and left out (._a.txt, .ipynb_checkpoints/a.txt, lost+found/x.md)") == 1
    assert told.count("3 files are of other kinds, and left out (LICENSE.txt, c.pdf, readme.md)") == 1


def test_configurations_of_a_readme(tmp_path, capsys):
    root = write(tmp_path / "clone", "README.md", "part/1.csv", "other.csv")
    assert rows(root, "train") == ["part/1.csv"] and capsys.readouterr().err == ""
    assert rows(root, "train", name="second") == ["other.csv"]
    with pytest.raises(
        UserError, match=r"no configuration 'secnd' \(did you mean 'second'\?\): set data\.name to one of"
    ):
        rows(root, "train", name="secnd")
    head = (
        "---\nconfigs:\n- {config_name: default, data_files: other.csv}\n"
        "dataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n    dtype:\n      class_label:\n"
        "        names: {'0': bad, '1': good}\n---\n"
    )
    (root / "README.md").write_text(head)
    (root / "other.csv").write_text("text,label\nx,1\n")
    data = open_source(DocumentSource(str(root)), tmp_path / "cache").data
    assert data.features["label"].names == ["bad", "good"] and data["label"][:] == [1]
    (root / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UserError, match=r"configurations in .*README\.md cannot be read"):
        rows(root, "train")


def test_parts_of_a_data_module(tmp_path):
    names = [
        f"{split}/{kind}/{n}.png" for split in ("train", "val", "test") for kind in ("cat", "dog") for n in (1, 2, 3)
    ]
    root = write(tmp_path / "pictures", *names)
    settings = {"cache_directory": str(tmp_path / "caches"), "label_column": "label", "batch_size": 2}
    labelled = {**settings, "image_column": "image", "validation_split": "validation", "test_split": "test"}
    for data in (
        LabelledDataModule(str(root), **labelled),
        LabelledDataModule("imagefolder", data_files=str(root), **labelled),
        LabelledDataModule(str(root), validation_path=str(root), test_path=str(root), **settings, image_column="image"),
        LabelledDataModule(
            str(root / "train"),
            validation_path=str(root / "val"),
            test_path=str(root / "test"),
            **settings,
            image_column="image",
        ),
    ):
        data.setup("fit")
        assert {name: len(part.rows) for name, part in data.parts.items() if name != "predict"} == {
            "train": 6,
            "validation": 6,
            "test": 6,
        }
    data = ImageDataModule(str(root), validation_share=0.5, test_split="test", **settings)
    data.setup("fit")
    assert (len(data.train_dataset), len(data.validation_dataset), len(data.test_dataset)) == (3, 3, 6)
    with pytest.raises(UserError, match=r"cat has no splits, so data\.test_split cannot name one"):
        ImageDataModule(str(root / "train" / "cat"), test_split="test", **settings).prepare_data()
    with pytest.raises(
        UserError, match=r"no split 'tst'.*its splits are train, validation, test; set data\.test_split"
    ):
        ImageDataModule(str(root), test_split="tst", **settings).prepare_data()
