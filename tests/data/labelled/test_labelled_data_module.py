"""Labelled data of every kind into batches, and what cannot work."""

import datasets
import numpy
import pytest
import torch
from lightning import LightningModule, Trainer
from picture_files import CLASSES, pixels_of, spoil, write_folder, write_parquet

from lit_pretrain.data import LabelledDataModule, loading
from lit_pretrain.data.labelled import labelled_sampler
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.sources import sample_path
from lit_pretrain.data.text import text_store
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError
from lit_pretrain.picture_facts import PictureFacts

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *LETTERS], lowercase=True))
CLS, SEP = TOKENIZER.cls_id, TOKENIZER.sep_id
NAMES = ["bad", "good"]


def texts_of(count, seed=0):
    """Texts of 1 to 20 letters, the row's number not among them."""
    generator = numpy.random.default_rng(seed)
    return [" ".join(generator.choice(list(LETTERS), generator.integers(1, 21))) for _ in range(count)]


def table_of(count=60, seed=0):
    """Rows with labels of all kinds, all of one class first."""
    features = {
        "text": datasets.Value("string"),
        "other": datasets.Value("string"),
        "label": datasets.ClassLabel(names=NAMES),
        "word": datasets.Value("string"),
        "score": datasets.Value("float64"),
        "stars": datasets.Value("int64"),
        "topics": datasets.List(datasets.Value("string")),
    }
    columns = {
        "text": texts_of(count, seed),
        "other": texts_of(count, seed + 1),
        "label": [int(row >= count * 2 // 3) for row in range(count)],
        "word": [NAMES[row % 2] for row in range(count)],
        "score": [row / 4 for row in range(count)],
        "stars": [row % 5 for row in range(count)],
        "topics": [["x", "y", "z"][: row % 4] for row in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


ROWS = table_of()


@pytest.fixture
def table(tmp_path):
    """60 labelled texts."""
    ROWS.to_parquet(tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def make_data(tmp_path, path, **settings):
    if "image_column" not in settings:
        TOKENIZER.save(tmp_path / "letters")
        settings = {"tokenizer": str(tmp_path / "letters"), "maximum_length": 16} | settings
    defaults = {"batch_size": 8, "validation_share": 0.2, "seed": 1}
    return LabelledDataModule(str(path), cache_directory=str(tmp_path / "caches"), **defaults | settings)


def ready(tmp_path, path, stage="fit", **settings):
    data = make_data(tmp_path, path, **settings)
    data.prepare_data()
    data.setup(stage)
    return data


def batches_of(loader, epoch=0):
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def rows_of(loader, epoch=0):
    counted = [batch for batch in batches_of(loader, epoch) if loading.SURPLUS not in batch]
    return [row for batch in counted for row in batch["sample_id"].tolist()]


def sequence(text, room):
    return [CLS, *(TOKENIZER.encode(text)[:room]), SEP]


def check(batch, rows, room=14):
    """A batch's sequences and labels are those of its rows."""
    longest = 0
    for ids, mask, row, label in zip(*(batch[name] for name in FIELDS), strict=True):
        expected = sequence(rows[int(row)]["text"], room)
        assert ids[mask].tolist() == expected and int(label) == rows[int(row)]["label"]
        assert ids[~mask].eq(TOKENIZER.pad_id).all()
        longest = max(longest, len(expected))
    assert batch["input_ids"].shape[1] == min(16, -(-longest // 4) * 4)
    assert batch["label"].dtype == torch.int64 and batch["token_type_ids"].eq(0).all()


FIELDS = ("input_ids", "attention_mask", "sample_id", "label")


def test_texts(table, tmp_path):
    data = ready(tmp_path, table)
    loader = data.train_dataloader()
    assert data.label_facts == LabelFacts("single_label", NAMES, [32, 16], 48) and data.classes == NAMES
    assert data.train_batches_per_epoch == len(loader) == 6 and data.facts is None and len(data.fingerprint) == 16
    for epoch in (0, 3):
        for index, batch in enumerate(batches_of(loader, epoch)):
            assert set(batch) == set(data.batch_fields)
            check(batch, ROWS)
            again = data.batch_at(epoch, index)
            torch.testing.assert_close(batch, again, rtol=0, atol=0)
    assert rows_of(loader, 0) != rows_of(loader, 1) and sorted(rows_of(loader, 0)) == sorted(rows_of(loader, 1))
    validation = batches_of(data.val_dataloader())
    for batch in validation:
        check(batch, ROWS)
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in validation]).tolist()
    assert len(lengths) == 12 and lengths == sorted(lengths, reverse=True)
    assert sorted(rows_of(loader) + rows_of(data.val_dataloader())) == list(range(60))
    # There is no test data of its own.
    assert rows_of(data.test_dataloader()) == rows_of(data.val_dataloader(), epoch=2)
    assert data.test_dataset is data.validation_dataset
    assert sum(ROWS[row]["label"] for row in rows_of(data.val_dataloader())) == 4


def test_parts_in_the_order_of_their_source(table, tmp_path):
    data = make_data(tmp_path, table, label_budget=10)
    for stage in ("train", "validation", "test"):
        batches = batches_of(data.evaluation_loader(stage))
        rows = torch.cat([batch["sample_id"] for batch in batches]).tolist()
        assert rows == sorted(rows) and len(rows) == (10 if stage == "train" else 12)
        for batch in batches:
            check(batch, ROWS)
        assert data.raw_samples(stage, rows[3:5]) == [{"text": ROWS[row]["text"]} for row in rows[3:5]]
        labels = getattr(data, f"{stage}_dataset").member_labels()
        assert labels.tolist() == [ROWS[row]["label"] for row in rows]
    with pytest.raises(UserError, match=r"There is no test data: set data\.test_path"):
        make_data(tmp_path, table, validation_share=0.0).evaluation_loader("test")
    unvalidated = ready(tmp_path, table, validation_share=0.0)
    assert unvalidated.val_dataloader() == unvalidated.test_dataloader() == []


def test_budgets_are_nested_and_validation_stays(table, tmp_path):
    full = ready(tmp_path, table)
    budgets = [ready(tmp_path, table, label_budget=one, seed=5) for one in (6, 0.25, 30)]
    rows = [set(rows_of(one.train_dataloader())) for one in budgets]
    assert [len(one) for one in rows] == [6, 12, 30] and rows[0] < rows[1] < rows[2]
    assert [one.label_facts.counts for one in budgets] == [[4, 2], [8, 4], [20, 10]]
    other = ready(tmp_path, table, label_budget=6, seed=6)
    assert set(rows_of(other.train_dataloader())) != rows[0]
    for one in (*budgets, other):
        assert rows_of(one.val_dataloader()) == rows_of(full.val_dataloader())


def test_pairs_and_numbers(table, tmp_path):
    data = ready(tmp_path, table, text_pair_column="other", label_column="score")
    assert data.label_facts.task == "regression" and data.label_facts.samples == 48 and data.classes == []
    for batch in batches_of(data.train_dataloader()):
        assert batch["label"].dtype == torch.float32
        for ids, mask, segments, row, label in zip(
            *(batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "sample_id", "label")),
            strict=True,
        ):
            first, second = (TOKENIZER.encode(ROWS[int(row)][column]) for column in ("text", "other"))
            while len(first) + len(second) > 13:
                (first if len(first) > len(second) else second).pop()
            assert ids[mask].tolist() == [CLS, *first, SEP, *second, SEP]
            assert segments.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1) + [0] * int((~mask).sum())
            assert float(label) == int(row) / 4
    assert data.raw_samples("train", [7]) == [{"text": ROWS[7]["text"], "text_pair": ROWS[7]["other"]}]


@pytest.mark.parametrize(
    ("column", "task", "facts", "label"),
    [
        ("word", None, LabelFacts("single_label", NAMES, [24, 24]), lambda row: row["word"] == "good"),
        ("stars", None, LabelFacts("single_label", list("01234"), [9, 10, 9, 10, 10]), lambda row: row["stars"]),
        ("stars", "regression", LabelFacts("regression"), lambda row: float(row["stars"])),
        ("topics", None, None, lambda row: [float(one in row["topics"]) for one in "xyz"]),
    ],
)
def test_labels_of_every_kind(table, tmp_path, column, task, facts, label):
    data = ready(tmp_path, table, label_column=column, task=task)
    if facts is None:
        assert data.label_facts.task == "multi_label" and data.classes == ["x", "y", "z"]
    else:
        assert data.label_facts.task == facts.task and data.classes == facts.classes
        assert sum(data.label_facts.counts) == sum(facts.counts)
    for batch in batches_of(data.train_dataloader()):
        expected = [label(ROWS[row]) for row in batch["sample_id"].tolist()]
        assert batch["label"].tolist() == expected


def test_sources_of_their_own(table, tmp_path):
    named, test = table_of(20, seed=7), table_of(9, seed=9)
    named = named.remove_columns("label").rename_column("word", "label")
    named.to_parquet(tmp_path / "validation.parquet")
    test.to_csv(tmp_path / "labels.csv")
    datasets.DatasetDict({"train": ROWS, "validation": named, "held_out": test}).save_to_disk(tmp_path / "saved")
    for settings in (
        {"validation_path": str(tmp_path / "validation.parquet"), "test_path": str(tmp_path / "saved")},
        {"validation_data_files": str(tmp_path / "validation.parquet"), "test_path": str(tmp_path / "saved")},
        {"path": str(tmp_path / "saved"), "validation_split": "validation"},
    ):
        data = ready(tmp_path, settings.pop("path", table), test_split="held_out", **settings)
        data.setup("test")
        assert sorted(rows_of(data.train_dataloader())) == list(range(60))
        (validation,) = batches_of(ready_loader(data, "validation"))
        assert validation["label"].tolist() == [0, 1] * 10
        for index, ids in enumerate(validation["input_ids"]):
            assert ids[validation["attention_mask"][index]].tolist() == sequence(named[index]["text"], 14)
        (batch,) = batches_of(ready_loader(data, "test"))
        check(batch, test)
        assert data.raw_samples("test", [3]) == [{"text": test[3]["text"]}]
        facts = data.describe()
        assert (facts["validation_samples"], facts["test_samples"]) == (20, 9)
    with pytest.raises(UserError, match=r"'label' of .*labels\.csv has the class '0', which the training data does"):
        ready(tmp_path, table, test_path=str(tmp_path / "labels.csv"))
    with pytest.raises(UserError, match=r"train\.parquet has no splits, so data\.validation_split cannot name one"):
        ready(tmp_path, table, validation_split="validation")


def ready_loader(data, stage):
    data.batch_size = 32
    loader = data.evaluation_loader(stage)
    data.batch_size = 8
    return loader


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_where_it_was(table, tmp_path, workers):
    expected = batches_of(ready(tmp_path, table).train_dataloader(), 1)
    first = ready(tmp_path, table, workers=workers).train_dataloader()
    first.batch_sampler.set_epoch(1)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(2)]
    second = ready(tmp_path, table, workers=workers).train_dataloader()
    second.load_state_dict(first.state_dict())
    seen += batches_of(second, 1)
    assert len(seen) == len(expected) == 6
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_processes_share_the_samples(table, tmp_path, monkeypatch):
    data, train, validation = ready(tmp_path, table), [], []
    for rank in range(3):
        for module in (loading, labelled_sampler):
            monkeypatch.setattr(module, "place", lambda rank=rank: (rank, 3))
        assert data.train_batches_per_epoch == 2
        train += rows_of(data.train_dataloader())
        validation += rows_of(data.val_dataloader())
        again = data.batch_at(4, 1, rank, 3)
        assert torch.equal(batches_of(data.train_dataloader(), 4)[1]["input_ids"], again["input_ids"])
    assert sorted(train + validation) == list(range(60))


class Model(LightningModule):
    """Counts what it is given; its tokenizer is the data's."""

    def __init__(self):
        super().__init__()
        self.tokenizer = TOKENIZER
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "validation": [], "test": []}

    def training_step(self, batch, index):
        """See a batch."""
        self.seen["train"] += batch["sample_id"].tolist()
        return self.weight.sum()

    def validation_step(self, batch, index):
        """See a batch."""
        self.seen["validation"] += batch["sample_id"].tolist()

    def test_step(self, batch, index):
        """See a batch."""
        self.seen["test"] += batch["sample_id"].tolist()

    def predict_step(self, batch, index):
        """Give a batch back."""
        return batch

    def configure_optimizers(self):
        """Anything."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_epochs=2,
        accelerator="cpu",
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        **quiet,
    )


def test_a_trainer_takes_it_with_the_models_tokenizer(table, tmp_path):
    model, data = Model(), make_data(tmp_path, table, tokenizer=None)
    trainer = trainer_of(tmp_path)
    trainer.fit(model, datamodule=data)
    assert data.tokenizer is TOKENIZER and trainer.global_step == 12
    assert sorted(model.seen["train"] + model.seen["validation"][:12] * 2) == sorted([*range(60)] * 2)
    trainer.test(model, datamodule=data, verbose=False)
    assert sorted(model.seen["test"]) == sorted(model.seen["validation"][:12])
    # A model with other pieces, and the same data: the texts are tokenised again.
    model.tokenizer = WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *reversed(LETTERS)], lowercase=True))
    trainer.fit(model, datamodule=data)
    (first, *_) = batches_of(data.evaluation_loader("train"))
    assert model.tokenizer.decode(first["input_ids"][0].tolist()).startswith(
        ROWS[int(first["sample_id"][0])]["text"][:9]
    )
    other = make_data(tmp_path, table)
    with pytest.raises(UserError, match=r"The model's tokenizer .* is not the one at .*letters"):
        trainer_of(tmp_path).fit(model, datamodule=other)


@pytest.mark.parametrize("unlabelled", ["column", "minus", "lines"])
def test_prediction_needs_no_labels(tmp_path, unlabelled):
    rows = ROWS.select_columns(["text"])
    path = tmp_path / "rows.parquet"
    if unlabelled == "minus":
        feature = datasets.ClassLabel(names=NAMES)
        rows = rows.add_column("label", [-1] * 60).cast_column("label", feature)
    if unlabelled == "lines":
        path = tmp_path / "rows.txt"
        path.write_text("\n".join(rows["text"]) + "\n")
    else:
        rows.to_parquet(path)
    batches = trainer_of(tmp_path).predict(Model(), datamodule=make_data(tmp_path, path, tokenizer=None))
    assert torch.cat([batch["sample_id"] for batch in batches]).tolist() == list(range(60))
    assert all("label" not in batch for batch in batches)
    assert batches[0]["input_ids"][3][batches[0]["attention_mask"][3]].tolist() == sequence(ROWS[3]["text"], 14)
    with pytest.raises(UserError, match=r"no column 'label'|no label in 60 of its 60 rows"):
        trainer_of(tmp_path).fit(Model(), datamodule=make_data(tmp_path, path, tokenizer=None))


def test_the_record_tells_what_the_data_was(table, tmp_path, monkeypatch):
    monkeypatch.setattr(text_store, "KEPT_FROM", 1)
    blank = table_of(40).map(lambda row, index: {"text": "  " if index in (3, 4) else row["text"]}, with_indices=True)
    blank.to_parquet(tmp_path / "blank.parquet")
    data = ready(tmp_path, tmp_path / "blank.parquet", validation_share=0.0, batch_size=3)
    assert len(list((tmp_path / "caches" / "labelled_texts").glob("*/facts.json"))) == 1
    facts = data.describe()
    lengths = [min(16, 2 + len(TOKENIZER.encode(row["text"]))) for row in blank]
    assert facts["training_samples"] == 40 and facts["training_empty_texts"] == 2 and facts["classes"] == 2
    assert facts["training_mean_length"] == round(sum(lengths) / 40, 1) and facts["task"] == "single_label"
    assert facts["training_truncated_share"] == sum(len(TOKENIZER.encode(row["text"])) > 14 for row in blank) / 40
    padded = [batch["input_ids"].numel() for batch in batches_of(data.train_dataloader())]
    assert facts["padding_share"] == round(1 - sum(lengths) / sum(padded), 4)
    assert all(isinstance(value, str | int | float) for value in facts.values())
    prints = {ready(tmp_path, table, **one).fingerprint for one in ({}, {"seed": 2}, {"label_budget": 9})}
    others = {ready(tmp_path, table, **one).fingerprint for one in ({"label_column": "word"}, {"text_column": "other"})}
    assert len(prints) == 1 and len(prints | others | {data.fingerprint}) == 4


def test_pictures(tmp_path):
    table = write_parquet(tmp_path / "pictures.parquet", 60)
    test = write_parquet(tmp_path / "test.parquet", 9)
    for column, task in (("label", "single_label"), ("name", "single_label"), ("weight", "regression")):
        data = ready(tmp_path, table, image_column="picture", label_column=column, test_path=str(test))
        assert data.label_facts.task == task and data.facts == PictureFacts(stored_size=8, grey_share=0.0)
        rows = []
        for batch in batches_of(data.train_dataloader()) + batches_of(data.val_dataloader()):
            assert set(batch) == set(data.batch_fields) == {"images", "sample_id", "label"}
            for image, row, label in zip(batch["images"], batch["sample_id"].tolist(), batch["label"], strict=True):
                assert numpy.array_equal(image, pixels_of(row).transpose(2, 0, 1))
                assert float(label) == (row / 2 if column == "weight" else row % 3)
                rows.append(row)
        assert sorted(rows) == list(range(60))
        assert rows_of(data.evaluation_loader("test")) == list(range(9))
        (raw,) = data.raw_samples("test", [4])
        assert numpy.array_equal(raw["image"], pixels_of(4))
        assert "padding_share" not in data.describe()
    assert data.train_dataloader().dataset.lengths is None
    few = ready(tmp_path, table, image_column="picture", label_budget=6)
    assert few.label_facts == LabelFacts("single_label", CLASSES, [2, 2, 2], 6) and len(few.train_dataloader()) == 1
    prediction = ready(tmp_path, table, stage="predict", image_column="picture", label_column=None)
    assert rows_of(prediction.predict_dataloader()) == list(range(60))


def test_damaged_pictures_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "pictures", 30)
    spoil(folder / "all" / "green" / "001.png")
    data = ready(tmp_path, folder, image_column="image", corrupt="skip", batch_size=5)
    rows = rows_of(data.train_dataloader()) + rows_of(data.val_dataloader())
    assert sorted(rows) == [*range(10), *range(11, 30)] and sum(data.label_facts.counts) == len(data.train_dataset)
    labels = torch.cat([batch["label"] for batch in batches_of(data.evaluation_loader("train"))])
    assert labels.bincount().tolist() == data.label_facts.counts


def test_the_bundled_samples(tmp_path):
    tokenizer = WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *LETTERS, *(f"##{one}" for one in LETTERS)], True))
    emoji = {"path": "parquet", "tokenizer": None, "cache_directory": str(tmp_path), "maximum_length": 24}
    files = str(sample_path("emoji"))
    data = LabelledDataModule(**emoji, data_files=files, text_column="name", label_column="group", label_budget=90)
    data.tokenizer = tokenizer
    data.setup("fit")
    assert len(data.classes) == 9 and min(data.label_facts.counts) >= 1 and sum(data.label_facts.counts) == 90
    several = LabelledDataModule(**emoji, data_files=files, text_column="name", label_column="keywords")
    several.tokenizer = tokenizer
    several.setup("fit")
    batch = next(iter(several.train_dataloader()))
    keywords = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))["keywords"]
    for row, label in zip(batch["sample_id"].tolist(), batch["label"], strict=True):
        assert sorted(several.classes[one] for one in label.nonzero()[:, 0]) == sorted(set(keywords[row]))
    assert sum(several.label_facts.counts) == several.train_dataset.member_labels().sum()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"maximum_length": 4}, r"data\.maximum_length is 4: give at least 8"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"validation_share": 1.0}, r"data\.validation_share is 1\.0"),
        ({"task": "ranking"}, r"data\.task is ranking: give single_label, multi_label or regression"),
        ({"image_column": "picture", "text_column": "text"}, r"data\.image_column and data\.text_column are both set"),
        ({"text_pair_column": "other", "truncation": "head_tail"}, "head_tail is for single texts"),
        ({"label_column": None}, r"no labels to learn from: set data\.label_column"),
        ({"label_column": "lable"}, r"no column 'lable' \(did you mean 'label'\?\)"),
        ({"text_column": "texts"}, r"no column 'texts' \(did you mean 'text'\?\).*set data\.text_column"),
        ({"text_pair_column": "othr"}, r"no column 'othr'.*set data\.text_pair_column"),
        ({"text_column": "stars"}, r"'stars' of .* holds int64, not text: set data\.text_column"),
        ({"task": "multi_label"}, "holds int64, not labels: give a column of lists"),
        ({"label_budget": 49}, r"is 49, and there are 48 training samples"),
        ({"label_budget": 1}, "fewer than the 2 classes"),
        ({"label_budget": 2.5}, "give a whole number from 1, or a share"),
        ({"tokenizer": "{tmp}/nothing"}, "There is no tokenizer at"),
        ({"tokenizer": None}, r"There is no tokenizer for the texts.*set data\.tokenizer"),
        ({"validation_path": "{tmp}/nowhere"}, r"no file or directory .*nowhere: check data\.validation_path"),
        ({"test_data_files": "{tmp}/*.jsonl"}, r"check data\.test_data_files or data\.test_path"),
    ],
)
def test_what_cannot_work_is_said_before_training(table, tmp_path, settings, sentence):
    settings = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    with pytest.raises(UserError, match=sentence):
        ready(tmp_path, table, **settings)


def test_texts_that_are_all_empty(tmp_path):
    datasets.Dataset.from_dict({"text": ["", " "] * 5, "label": [0, 1] * 5}).to_parquet(tmp_path / "it.parquet")
    with pytest.raises(UserError, match=r"None of the 8 rows of .*it\.parquet that are used has any text in 'text'"):
        ready(tmp_path, tmp_path / "it.parquet")
