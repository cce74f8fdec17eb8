"""Pictures from every kind of source as exact, resumable batches, cached or decoded on the way."""

import io
import json
import multiprocessing

import datasets
import numpy
import pytest
import torch
from PIL import Image
from small_pictures import draw, make_pictures, write_pictures

from lit_pretrain.data import ImageDataModule
from lit_pretrain.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet")


def prepared(data):
    data.prepare_data()
    data.setup("fit")
    return data


def folder_of(directory, count=12, size=16):
    """Pictures in a folder for each of two kinds."""
    generator = numpy.random.default_rng(0)
    for number in range(count):
        kind = directory / ("red" if number % 2 else "green")
        kind.mkdir(parents=True, exist_ok=True)
        draw(0 if number % 2 else 1, generator, size).save(kind / f"{number:02d}.png")
    return directory


def everything(data):
    """All pictures in the source's order."""
    batches = list(data.predict_dataloader())
    return torch.cat([one["images"] for one in batches]), torch.cat([one["sample_id"] for one in batches])


def test_the_bundled_emoji_need_no_path(tmp_path):
    data = prepared(ImageDataModule(label_column="group", max_pictures=300, cache_directory=str(tmp_path)))
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (128, 3, 64, 64) and batch["images"].dtype == torch.uint8
    assert data.stored_size == 64 and "Smileys & Emotion" in data.classes and data.facts.grey_share < 0.2
    facts = data.describe()
    assert facts["cached"] and facts["pictures"] == 300 and facts["classes"] == len(data.classes)


def test_cached_and_decoded_on_the_way_are_the_same(pictures, tmp_path):
    cached, decoded = (prepared(make_pictures(pictures, tmp_path, cache=cache)) for cache in (True, False))
    for one, other in zip(everything(cached), everything(decoded), strict=True):
        assert torch.equal(one, other)
    first, second = cached.batch_at(1, 2), decoded.batch_at(1, 2)
    assert all(torch.equal(first[name], second[name]) for name in ("images", "sample_id", "label"))
    assert cached.facts.stored_size == decoded.facts.stored_size == 16
    with Image.open(
        io.BytesIO(
            datasets.load_dataset("parquet", data_files=str(pictures), split="train").cast_column(
                "image", datasets.Image(decode=False)
            )[5]["image"]["bytes"]
        )
    ) as truth:
        assert (everything(cached)[0][5].permute(1, 2, 0).numpy() == numpy.asarray(truth)).all()


def test_every_kind_of_source(pictures, tmp_path):
    folder = folder_of(tmp_path / "folder")
    files = sorted(folder.rglob("*.png"))
    expected = everything(prepared(ImageDataModule(str(folder), cache_directory=str(tmp_path / "c"))))[0]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps({"file": str(one.relative_to(tmp_path))}) + "\n" for one in files))
    datasets.Dataset.from_dict({"image": [str(one) for one in files]}).cast_column(
        "image", datasets.Image()
    ).save_to_disk(tmp_path / "saved")
    for path, column in ((table, "file"), (tmp_path / "saved", None)):
        data = ImageDataModule(str(path), image_column=column, cache_directory=str(tmp_path / "c"))
        assert torch.equal(everything(prepared(data))[0], expected), path
    labelled = prepared(ImageDataModule(str(folder), label_column="label", cache_directory=str(tmp_path / "c")))
    assert labelled.classes == ["green", "red"]
    images, labels = labelled.labelled_arrays("train")
    # The square in the middle tells: red over green where the label is red.
    redder = images[:, 0].reshape(len(images), -1).max(1).astype(int) - images[:, 1].reshape(len(images), -1).min(1)
    assert len(labels) == 11 and set(labels) == {0, 1} and (redder > 0).all()


def test_order_is_the_epochs_and_resumes_within_it(pictures, tmp_path):
    data = prepared(make_pictures(pictures, tmp_path, workers=2))
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([batch["sample_id"].tolist() for batch in loader])
    assert sorted(sum(epochs[0], [])) == sorted(sum(epochs[1], [])) and epochs[0] != epochs[1]
    assert len(epochs[0]) == data.train_batches_per_epoch == 12
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 1, "batches": 5})
    loader.sampler.set_epoch(1)
    assert [batch["sample_id"].tolist() for batch in loader] == epochs[1][5:]
    assert data.batch_at(1, 7)["sample_id"].tolist() == epochs[1][7]


def test_validation_is_the_same_in_every_run_and_apart(pictures, tmp_path):
    parts = []
    for seed in (0, 1):
        data = prepared(make_pictures(pictures, tmp_path, seed=seed))
        train = {one for batch in data.train_dataloader() for one in batch["sample_id"].tolist()}
        validation = [one for batch in data.val_dataloader() for one in batch["sample_id"].tolist()]
        assert len(validation) == 24 and not train & set(validation)
        parts.append(validation)
    assert parts[0] == parts[1]


def test_a_label_budget_keeps_classes_and_sample_ids(pictures, tmp_path):
    data = prepared(make_pictures(pictures, tmp_path, label_budget=0.25, batch_size=4))
    assert len(data.train_dataset) == 24 and len(data.validation_dataset) == 24
    batches = list(data.train_dataloader())
    labels = torch.cat([one["label"] for one in batches])
    assert torch.bincount(labels).min() >= 7
    # Row i has the class i modulo 3: what a sample is called stays what it was.
    assert torch.equal(torch.cat([one["sample_id"] for one in batches]) % 3, labels)


def test_a_test_set_of_its_own(pictures, tmp_path):
    test = write_pictures(tmp_path / "test.parquet", count=9, seed=5)
    data = make_pictures(pictures, tmp_path, test_data_files=str(test))
    data.setup("test")
    (batch, *rest) = list(data.test_dataloader())
    assert len(batch["images"]) + sum(len(one["images"]) for one in rest) == 9
    assert data.labelled_arrays("test", 4)[0].shape == (4, 3, 16, 16)
    with pytest.raises(UserError, match="has no splits by name"):
        make_pictures(pictures, tmp_path, test_split="test").prepare_data()


def test_damaged_pictures_are_an_error_or_left_out_by_name(tmp_path, capsys):
    folder = folder_of(tmp_path / "folder")
    damaged = folder / "red" / "01.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    caches = str(tmp_path / "caches")
    for cache in (True, False):
        with pytest.raises(UserError, match="01.png"):
            everything(prepared(ImageDataModule(str(folder), cache=cache, cache_directory=caches)))
    data = prepared(ImageDataModule(str(folder), corrupt="skip", cache_directory=caches))
    assert len(everything(data)[0]) == 11 and data.describe()["skipped_pictures"] == 1
    assert "1 pictures that cannot be read are left out" in capsys.readouterr().out
    (listing,) = (tmp_path / "caches" / "pictures").glob(f"{data.fingerprint}.unreadable.txt")
    assert "01.png" in listing.read_text()
    on_the_way = prepared(ImageDataModule(str(folder), corrupt="skip", cache=False, cache_directory=caches))
    with pytest.warns(UserWarning, match="01.png"):
        assert len(everything(on_the_way)[0]) == 12


def test_sizes(tmp_path):
    folder = folder_of(tmp_path / "folder")
    Image.new("RGB", (40, 20), "blue").save(folder / "red" / "zz.png")
    with pytest.raises(UserError, match="differ in size.*data.stored_size"):
        prepared(ImageDataModule(str(folder), cache_directory=str(tmp_path / "c")))
    data = prepared(ImageDataModule(str(folder), stored_size=8, cache_directory=str(tmp_path / "c")))
    assert everything(data)[0].shape == (13, 3, 8, 8)


def test_mistakes_get_a_sentence(pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for settings, words in (
        ({"path": str(tmp_path / "nothing")}, "There is no file or directory"),
        ({"path": str(empty)}, "holds no file"),
        ({"path": str(pictures), "image_column": "imag"}, "did you mean 'image'"),
        ({"path": str(pictures), "image_column": "label"}, "neither pictures nor file names"),
        ({"path": str(pictures), "label_column": "lable"}, "did you mean 'label'"),
        ({"path": str(pictures), "label_column": "image"}, "not labels"),
        ({"path": str(pictures), "label_column": "label", "label_budget": 2}, "fewer than the 3 classes"),
        ({"path": str(pictures), "label_budget": 20}, "needs labels"),
        ({"path": str(pictures), "stored_size": 1}, "data.stored_size is 1"),
        ({"path": str(pictures), "validation_share": 1.0}, "data.validation_share"),
    ):
        with pytest.raises(UserError, match=words):
            prepared(ImageDataModule(cache_directory=str(tmp_path / "c"), **settings))
    with pytest.raises(UserError, match="do not fill one batch"):
        prepared(make_pictures(pictures, tmp_path, batch_size=500)).train_dataloader()


def build(path, caches, answers):
    data = prepared(make_pictures(path, caches))
    answers.put((len(data.train_dataset), data.fingerprint))


def test_two_processes_at_once_build_one_cache(pictures, tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=build, args=(pictures, tmp_path, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    assert answers.get(timeout=100) == answers.get(timeout=100)
    for process in processes:
        process.join()
    assert len([one for one in (tmp_path / "pictures").iterdir() if one.is_dir()]) == 1
