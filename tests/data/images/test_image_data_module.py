"""Pictures into batches: what stands in them, which pictures they are, and what cannot work."""

import datasets
import numpy
import pytest
import torch
from picture_files import CLASSES, make_rows, pixels_of, spoil, write_folder, write_parquet

from lit_pretrain.data import ImageDataModule, loading
from lit_pretrain.data.images import image_cache
from lit_pretrain.errors import UserError
from lit_pretrain.picture_facts import PictureFacts


@pytest.fixture
def table(tmp_path):
    """60 pictures of 8 pixels in 3 classes."""
    return write_parquet(tmp_path / "pictures.parquet", 60)


def make_data(tmp_path, path, **settings):
    defaults = {"label_column": "label", "batch_size": 8, "validation_share": 0.2, "seed": 1}
    return ImageDataModule(str(path), cache_directory=str(tmp_path / "caches"), **defaults | settings)


def ready(tmp_path, path, **settings):
    data = make_data(tmp_path, path, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def batches_of(loader, epoch=0):
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def rows_of(loader, epoch=0):
    return torch.cat([batch["sample_id"] for batch in batches_of(loader, epoch)]).tolist()


def check(batch):
    """A batch's pictures and labels are those of its rows."""
    assert batch["images"].dtype == torch.uint8 and batch["images"].is_contiguous()
    assert batch["sample_id"].dtype == batch["label"].dtype == torch.int64
    for image, row, label in zip(batch["images"], batch["sample_id"].tolist(), batch["label"].tolist(), strict=True):
        assert numpy.array_equal(image, pixels_of(row).transpose(2, 0, 1)) and label == row % 3


@pytest.mark.parametrize("cache", [True, False])
def test_batches(table, tmp_path, cache):
    data = ready(tmp_path, table, cache=cache)
    loader = data.train_dataloader()
    assert data.batch_fields == ("images", "sample_id", "label") and data.classes == CLASSES
    assert data.stored_size == 8 and len(data.fingerprint) == 16 and data.train_batches_per_epoch == len(loader) == 6
    for epoch in (0, 3):
        for index, batch in enumerate(batches_of(loader, epoch)):
            assert tuple(batch) == data.batch_fields and batch["images"].shape == (8, 3, 8, 8)
            check(batch)
            again = data.batch_at(epoch, index)
            assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert rows_of(loader, 0) != rows_of(loader, 1) and sorted(rows_of(loader, 0)) == sorted(rows_of(loader, 1))
    validation, everything = rows_of(data.val_dataloader()), rows_of(data.predict_dataloader())
    assert len(validation) == 12 and everything == list(range(60))
    assert sorted(validation + rows_of(loader)) == everything
    assert rows_of(data.test_dataloader()) == validation == rows_of(data.val_dataloader(), epoch=4)
    unlabelled = ready(tmp_path, table, cache=cache, label_column=None)
    assert unlabelled.classes is None and unlabelled.batch_fields == ("images", "sample_id")
    assert tuple(batches_of(unlabelled.val_dataloader())[0]) == unlabelled.batch_fields
    assert unlabelled.fingerprint == data.fingerprint


def test_validation_is_the_same_for_every_seed_and_budget(table, tmp_path):
    ones = [ready(tmp_path, table, **settings) for settings in ({"seed": 2}, {"seed": 3}, {"label_budget": 9})]
    assert len({str(rows_of(one.val_dataloader())) for one in ones}) == 1
    assert rows_of(ones[0].train_dataloader()) != rows_of(ones[1].train_dataloader())


@pytest.mark.parametrize(("cache", "workers"), [(True, 0), (False, 2)])
def test_an_interrupted_epoch_goes_on_where_it_was(table, tmp_path, cache, workers):
    straight = ready(tmp_path, table).train_dataloader()
    expected = batches_of(straight, 1)
    first = ready(tmp_path, table, cache=cache, workers=workers).train_dataloader()
    first.batch_sampler.set_epoch(1)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(2)]
    second = ready(tmp_path, table, cache=cache, workers=workers).train_dataloader()
    second.load_state_dict(first.state_dict())
    seen += batches_of(second, 1)
    assert len(seen) == len(expected) == 6
    for one, other in zip(seen, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_second_module_decodes_nothing(table, tmp_path, monkeypatch):
    first = ready(tmp_path, table)
    monkeypatch.setattr(image_cache, "build", None)
    for settings in ({}, {"label_column": "name"}, {"cache_gigabytes": 0.0}):
        second = ready(tmp_path, table, **settings)
        assert second.fingerprint == first.fingerprint
        check(batches_of(second.val_dataloader())[0])


def test_pictures_too_large_to_be_kept_are_decoded(table, tmp_path, capsys):
    data = ready(tmp_path, table, cache_gigabytes=60 * 192e-9 * 0.99)
    assert not data.pictures.cached and not (tmp_path / "caches" / "pictures").exists()
    assert "too much for data.cache_gigabytes: they are decoded anew in every epoch" in capsys.readouterr().err
    check(batches_of(data.train_dataloader())[0])
    assert ready(tmp_path, table, cache_gigabytes=60 * 192e-9 * 1.01).pictures.cached
    assert "anew" not in capsys.readouterr().err


def test_damaged_pictures_are_left_out_and_told_of(tmp_path, capsys):
    folder = write_folder(tmp_path / "pictures", 30)
    spoil(folder / "all" / "green" / "001.png")
    with pytest.raises(UserError, match=r"1 of the 30 pictures .*001\.png: .*truncated.*set data\.corrupt to skip"):
        ready(tmp_path, folder)
    whole = ready(tmp_path, write_folder(tmp_path / "whole", 30))
    data = ready(tmp_path, folder, corrupt="skip")
    assert data.describe()["skipped_pictures"] == 1 and data.describe()["pictures"] == 29
    line = capsys.readouterr().err.splitlines()[-2]
    assert line.startswith("1 of the 30 pictures") and "001.png" in line and line.endswith(": left out.")
    # Row 10 is the first of the second directory. The others stay in the part that they were in.
    parts = [{*one.train_dataset.images.rows[one.train_dataset.members].tolist()} for one in (data, whole)]
    validations = [rows_of(one.val_dataloader()) for one in (data, whole)]
    assert set(validations[1]) - set(validations[0]) | parts[1] - parts[0] == {10}
    assert not parts[0] - parts[1] and not set(validations[0]) - set(validations[1])
    unkept = ready(tmp_path, folder, corrupt="skip", cache=False)
    assert unkept.describe()["skipped_pictures"] == 0
    assert 10 not in rows_of(unkept.predict_dataloader()) and unkept.describe()["skipped_pictures"] == 1


def test_a_label_budget_keeps_shares_and_rows(tmp_path):
    rows = make_rows(60)
    skewed = rows.select([row for row in range(60) if row % 3 == 0 or row < 30])
    table = tmp_path / "skewed.parquet"
    skewed.to_parquet(table)
    full = ready(tmp_path, table, batch_size=1, validation_share=0.0)
    budgets = {}
    for seed in (1, 2):
        data = ready(tmp_path, table, batch_size=1, validation_share=0.0, label_budget=8, seed=seed)
        assert numpy.bincount(data.train_dataset.member_labels()).tolist() == [4, 2, 2]
        budgets[seed] = rows_of(data.train_dataloader())
        for batch in batches_of(data.train_dataloader()):
            row = int(batch["sample_id"])
            assert int(batch["label"]) == skewed[row]["label"]
            assert torch.equal(batch["images"][0], full.train_dataset.batch(numpy.array([row]))["images"][0])
        assert data.val_dataloader() == [] and data.test_dataloader() == []
    assert set(budgets[1]) != set(budgets[2])
    assert len(ready(tmp_path, table, batch_size=1, validation_share=0.0, label_budget=0.25).train_dataset) == 10


def test_a_test_set_of_its_own(table, tmp_path):
    rows = make_rows(24)
    test = rows.select([row for row in range(24) if row % 3])
    test.cast_column("label", datasets.Value("int64")).to_parquet(tmp_path / "numbers.parquet")
    named = test.remove_columns("label").rename_column("name", "label")
    named.to_parquet(tmp_path / "test.parquet")
    datasets.DatasetDict({"train": rows, "held_out": named}).save_to_disk(tmp_path / "saved")
    for settings in (
        {"test_path": str(tmp_path / "test.parquet")},
        {"test_data_files": str(tmp_path / "test.parquet")},
        {"test_path": str(tmp_path / "saved"), "test_split": "held_out"},
        {"path": str(tmp_path / "saved"), "test_split": "held_out"},
    ):
        data = ready(tmp_path, settings.pop("path", table), **settings)
        batches = batches_of(data.test_dataloader())
        images, labels = (torch.cat([batch[name] for batch in batches]) for name in ("images", "label"))
        # The classes are the training's: green is 1 and red 2, though the test set has no blue.
        assert labels.tolist() == [1, 2] * 8
        expected = [pixels_of(row) for row in range(24) if row % 3]
        assert numpy.array_equal(images, numpy.stack(expected).transpose(0, 3, 1, 2))
        assert rows_of(data.test_dataloader()) == list(range(16))
        assert data.describe()["test_pictures"] == 16
    with pytest.raises(UserError, match="'label' of .*numbers.parquet has the class '1'"):
        ready(tmp_path, table, test_path=str(tmp_path / "numbers.parquet"))
    with pytest.raises(UserError, match=r"pictures\.parquet has no splits.*set data\.test_path"):
        ready(tmp_path, table, test_split="test")
    with pytest.raises(UserError, match=r"row 0 .*is 8x8, row 0 .*is 9x9\): set data\.stored_size"):
        ready(tmp_path, table, test_path=str(write_parquet(tmp_path / "large.parquet", 6, side=9)))


def test_labelled_arrays(table, tmp_path):
    data, unkept = make_data(tmp_path, table, label_budget=24), make_data(tmp_path, table, cache=False, seed=7)
    for which, count in (("train", 24), ("validation", 12), ("test", 12)):
        images, labels = data.labelled_arrays(which)
        assert images.shape == (count, 3, 8, 8) and images.dtype == numpy.uint8 and len(labels) == count
    images, labels = data.labelled_arrays("train", 6)
    assert numpy.bincount(labels).tolist() == [2, 2, 2]
    again = data.labelled_arrays("train", 6)
    assert numpy.array_equal(again[0], images) and numpy.array_equal(again[1], labels)
    for one, other in zip(data.labelled_arrays("validation", 5), unkept.labelled_arrays("validation", 5), strict=True):
        assert len(one) == 5 and numpy.array_equal(one, other)
    numbers = {pixels_of(row).transpose(2, 0, 1).tobytes(): row for row in range(60)}
    rows = [numbers[image.tobytes()] for image in images]
    assert rows == sorted(rows) and [row % 3 for row in rows] == labels.tolist()
    with pytest.raises(UserError, match="no labels: set data.label_column"):
        make_data(tmp_path, table, label_column=None).labelled_arrays("train", 5)
    with pytest.raises(UserError, match=r"no validation pictures: set data\.validation_share"):
        make_data(tmp_path, table, validation_share=0.0).labelled_arrays("validation", 5)


def test_what_evaluations_ask(table, tmp_path):
    others = write_parquet(tmp_path / "others.parquet", 6, side=9)
    data = make_data(tmp_path, table, label_budget=24, test_path=str(others), stored_size=8)
    for stage, count in (("train", 24), ("validation", 12), ("test", 6)):
        batches = list(data.evaluation_loader(stage))
        rows = torch.cat([batch["sample_id"] for batch in batches]).tolist()
        assert len(rows) == count and rows == sorted(set(rows))
        shown = data.raw_samples(stage, rows[-2:])
        # Of the test set as large as they are, not as they are stored.
        side = 9 if stage == "test" else 8
        assert [
            numpy.array_equal(one["image"], pixels_of(row, side)) for one, row in zip(shown, rows[-2:], strict=True)
        ] == [True] * 2
    facts = data.label_facts
    assert (facts.task, facts.classes) == ("single_label", CLASSES)
    # Of the training pictures that the budget allows.
    assert facts.counts == numpy.bincount(data.labelled_arrays("train")[1]).tolist() and sum(facts.counts) == 24
    unlabelled = ready(tmp_path, table, label_column=None, validation_share=0.0)
    assert unlabelled.label_facts is None
    with pytest.raises(UserError, match=r"no validation pictures: set data\.validation_share"):
        unlabelled.evaluation_loader("validation")


def test_the_record_tells_what_the_data_was(table, tmp_path):
    data = ready(tmp_path, table)
    facts = data.describe()
    assert facts["pictures"] == 60 and facts["training_pictures"] == 48 and facts["validation_pictures"] == 12
    assert facts["classes"] == 3 and facts["data_fingerprint"] == data.fingerprint and facts["source"] == str(table)
    pixels = numpy.stack([pixels_of(row) for row in range(60)]) / 255
    assert facts["mean"] == " ".join(f"{one:.4f}" for one in pixels.mean(axis=(0, 1, 2)))
    assert facts["std"] == " ".join(f"{one:.4f}" for one in pixels.std(axis=(0, 1, 2)))
    assert data.facts == PictureFacts(stored_size=8, grey_share=0.0)
    assert all(isinstance(value, str | int | float) for value in facts.values())


def test_pictures_of_any_size_become_squares(tmp_path):
    folder = write_folder(tmp_path / "pictures", 6)
    write_folder(tmp_path / "pictures" / "more", 6, side=11)
    with pytest.raises(UserError, match=r"differ in size .* set data\.stored_size"):
        ready(tmp_path, folder)
    data = ready(tmp_path, folder, stored_size=5, batch_size=4)
    assert batches_of(data.train_dataloader())[0]["images"].shape == (4, 3, 5, 5) and data.stored_size == 5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stored_size": 1}, r"data\.stored_size is 1: give at least 2"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"max_pictures": 0}, r"data\.max_pictures is 0"),
        ({"validation_share": 1.0}, r"data\.validation_share is 1\.0"),
        ({"validation_share": 0.995}, "of 0.995 leaves 60 pictures for training and 0 for validation"),
        ({"max_pictures": 1, "label_column": None}, "leaves 1 pictures for training and 0 for validation"),
        ({"max_pictures": 2}, r"The training pictures \(1 in all\) do not fill one batch"),
        (
            {"batch_size": 100},
            r"The training pictures \(48 in all\) do not fill one batch .*: lower data\.batch_size",
        ),
        ({"label_budget": 9, "label_column": None}, r"data\.label_budget needs labels: set data\.label_column"),
        ({"label_budget": 49}, "is 49, and there are 48 training pictures"),
        ({"label_budget": 2}, "fewer than the 3 classes"),
        ({"label_column": "weight"}, "'weight' of .* holds float64, not labels"),
        ({"label_column": "labels"}, r"no column 'labels' \(did you mean 'label'\?\)"),
        ({"image_column": "pictures"}, r"no column 'pictures' \(did you mean 'picture'\?\)"),
        ({"test_path": "{tmp}/nowhere"}, r"no file or directory .*nowhere: check data\.test_path"),
        ({"test_data_files": "{tmp}/*.jpg"}, r"check data\.test_data_files or data\.test_path"),
    ],
)
def test_what_cannot_work_is_said_before_training(table, tmp_path, settings, sentence):
    settings = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    with pytest.raises(UserError, match=sentence):
        ready(tmp_path, table, **settings).train_dataloader()


def test_more_processes_than_samples_is_said_before_training(table, tmp_path, monkeypatch):
    data = ready(tmp_path, table, batch_size=1)
    monkeypatch.setattr(loading, "place", lambda: (0, 49))
    sentence = r"The training pictures \(48 in all\) are fewer than the 49 processes.* lower trainer\.devices"
    with pytest.raises(UserError, match=sentence):
        data.train_dataloader()
