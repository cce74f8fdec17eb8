"""Pairs: every picture on one side only, captions drawn reproducibly, order that goes on, and what is wrong."""

import io
import tarfile

import datasets
import numpy
import pytest
import torch
from picture_files import pixels_of, png
from small_pairs import make_pairs, make_rows, write_pairs, write_tokenizer

from lit_pretrain.data import PairDataModule
from lit_pretrain.errors import UserError


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


def captions_of(data, epoch, batches=6):
    """sample_id -> caption of an epoch."""
    found = {}
    for index in range(batches):
        batch = data.batch_at(epoch, index)
        texts = data.captions("train", batch["caption_id"].tolist())
        found |= dict(zip(batch["sample_id"].tolist(), texts, strict=True))
    return found


def test_a_caption_is_drawn_for_each_picture_and_epoch(pairs, tmp_path):
    rows = make_rows()
    data = make_pairs(pairs, tmp_path)
    data.setup("fit")
    first, second = captions_of(data, 0), captions_of(data, 1)
    for row, caption in first.items():
        assert caption in [rows["title"][row], *rows["others"][row]]
    assert len(first) == 48 and first.keys() == second.keys() and first != second
    again = make_pairs(pairs, tmp_path)
    again.setup("fit")
    assert captions_of(again, 1) == second
    other = make_pairs(pairs, tmp_path, seed=2)
    other.setup("fit")
    assert captions_of(other, 1) != second
    # Each of a picture's captions has its turn, about as often as the others.
    row = next(row for row in first if row % 4 == 3)
    drawn = [data.captions("train", [one])[0] for epoch in range(400) for one in [caption_at(data, row, epoch)]]
    counts = {text: drawn.count(text) for text in set(drawn)}
    assert set(counts) == {rows["title"][row], *rows["others"][row]} and min(counts.values()) > 60

    batch = data.batch_at(0, 0)
    texts = data.captions("train", batch["caption_id"].tolist())
    pieces = [ids[mask][1:-1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert pieces == data.tokenizer.encode_batch(texts)
    assert batch["padded"] is not bool(batch["attention_mask"].all())
    same = [(one, other) for one in range(8) for other in range(8) if pieces[one] == pieces[other]]
    keys = batch["caption_key"].tolist()
    assert same == [(one, other) for one in range(8) for other in range(8) if keys[one] == keys[other]]


def caption_at(data, row, epoch):
    index = data.train_dataset.images.rows[data.train_dataset.members].tolist().index(row)
    return data.train_dataset.drawn(epoch)[index]


def test_the_loader_goes_on_in_mid_epoch(pairs, tmp_path):
    data = make_pairs(pairs, tmp_path)
    data.setup("fit")
    straight = list(data.train_dataloader())
    loader = data.train_dataloader()
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    again = data.train_dataloader()
    again.load_state_dict(loader.state_dict())
    rest = list(again)
    assert len(straight) == 6 and len(rest) == 2
    for one, other in zip(straight[4:], rest, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rows_of_one_picture_are_one_picture(tmp_path):
    # Twelve pictures, five rows each, in turn: one caption a row, as Flickr's lists have it.
    rows = {
        "image": [{"bytes": png(pixels_of(index % 12)), "path": None} for index in range(60)],
        "text": [f"caption {index // 12} of picture {'abcdefghijkl'[index % 12]}" for index in range(60)],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    data = make_pairs(path, tmp_path, caption_columns="text", batch_size=3, tokenizer=tokenizer, validation_share=0.25)
    data.setup("fit")
    assert len(data.train_dataset) == 9 and data.describe()["rows_put_together"] == 48
    sides = {}
    for part in ("train", "validation"):
        for batch in data.evaluation_loader(part):
            texts = data.captions(part, batch["caption_id"].tolist())
            for place, row in zip(batch["picture"].tolist(), batch["sample_id"].tolist(), strict=True):
                own = [
                    text for text, owner in zip(texts, batch["caption_picture"].tolist(), strict=True) if owner == place
                ]
                assert own == [rows["text"][row + 12 * turn] for turn in range(5)]
                sides[row] = part
    assert sorted(sides) == list(range(12)) and list(sides.values()).count("validation") == 3
    # Whatever the seed.
    other = make_pairs(path, tmp_path, caption_columns="text", tokenizer=tokenizer, validation_share=0.25, seed=9)
    other.setup("fit")
    kept = [data.galleries["validation"], other.galleries["validation"]]
    assert numpy.array_equal(kept[0].members, kept[1].members)
    assert data.raw_samples("validation", [3])[0]["captions"] == [rows["text"][3 + 12 * turn] for turn in range(5)]


def test_the_names_of_classes_are_captions(tmp_path):
    kinds = ["oak_tree", "car"]
    rows = {
        "image": [{"bytes": png(pixels_of(index)), "path": None} for index in range(12)],
        "kind": [index % 2 if index else -1 for index in range(12)],
        "more": [[1, 0][: index % 3] for index in range(12)],
    }
    one = datasets.ClassLabel(names=kinds)
    features = datasets.Features({"image": datasets.Image(), "kind": one, "more": datasets.List(one)})
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    data = make_pairs(
        path, tmp_path, caption_columns=["kind", "more"], batch_size=2, empty_captions="skip", vocabulary_size=60
    )
    data.setup("fit")
    assert data.describe()["empty_captions"] == 1 and data.describe()["pictures_without_caption"] == 1
    parts = {
        row: part
        for part in ("train", "validation")
        for one in data.evaluation_loader(part)
        for row in one["sample_id"].tolist()
    }
    assert sorted(parts) == list(range(1, 12))
    for row, part in parts.items():
        names = ["oak tree", "car"]
        expected = [names[row % 2], *["car", "oak tree"][: row % 3]]
        assert data.raw_samples(part, [row])[0]["captions"] == expected


@pytest.mark.parametrize("as_builder", [False, True])
def test_tar_shards_of_webdatasets_form(as_builder, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    texts = [f"caption number {index}" for index in range(12)]
    for shard in range(2):
        with tarfile.open(shards / f"pairs-{shard}.tar", "w") as archive:
            for index in range(6 * shard, 6 * shard + 6):
                for ending, content in (
                    ("png", png(pixels_of(index))),
                    ("txt", texts[index].encode()),
                    ("json", b'{"key": null}'),
                ):
                    member = tarfile.TarInfo(f"{index:05}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    source = {"path": str(shards)}
    if as_builder:
        source = {"path": "webdataset", "data_files": str(shards / "*.tar")}
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    data = PairDataModule(
        **source, caption_columns=["txt"], tokenizer=tokenizer, cache_directory=str(tmp_path / "caches"), batch_size=4
    )
    data.setup("fit")
    found = {}
    for part in ("train", "validation"):
        for batch in data.evaluation_loader(part):
            said = data.captions(part, batch["caption_id"].tolist())
            for row, image, text in zip(batch["sample_id"].tolist(), batch["images"], said, strict=True):
                assert numpy.array_equal(image.permute(1, 2, 0).numpy(), pixels_of(row))
                found[row] = text
    assert [found[row] for row in range(12)] == texts


def test_empty_and_long_captions(tmp_path, capsys):
    rows = make_rows(20)
    rows["title"][3], rows["title"][6], rows["title"][5] = "", None, "a leaf " * 40
    rows["others"][3] = []
    path = write_pairs(tmp_path / "gaps.parquet", rows)
    with pytest.raises(UserError, match=r"2 of the 4\d captions .* are empty, and 1 of its 20 pictures .*row 3 is"):
        make_pairs(path, tmp_path).setup("fit")
    data = make_pairs(path, tmp_path, empty_captions="skip")
    data.setup("fit")
    assert "left out" in capsys.readouterr().err
    facts = data.describe()
    assert facts["empty_captions"] == 2 and facts["pictures_without_caption"] == 1 and facts["truncated_captions"] == 1
    seen = [row for part in ("train", "validation") for one in data.evaluation_loader(part) for row in one["sample_id"]]
    assert sorted(map(int, seen)) == [row for row in range(20) if row != 3]


def test_words_without_pieces_are_counted_and_told(tmp_path, capsys):
    rows = make_rows(20)
    rows["title"][4], rows["title"][9] = "a zebra", "a quagga"
    path, tokenizer = write_pairs(tmp_path / "animals.parquet", rows), write_tokenizer(tmp_path / "tokenizer")
    data = make_pairs(path, tmp_path, tokenizer=tokenizer)
    data.setup("fit")
    assert data.describe()["captions_with_unknown_words"] == 2
    told = capsys.readouterr().err
    assert "have words that the tokenizer has no pieces for ('a zebra' is the first)" in told
    assert "raise data.vocabulary_size" in " ".join(told.split())
    data = make_pairs(write_pairs(tmp_path / "colors.parquet"), tmp_path, tokenizer=tokenizer)
    data.setup("fit")
    assert data.describe()["captions_with_unknown_words"] == 0 and "no pieces" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_columns": None}, "has title, others|not said which columns"),
        ({"caption_columns": ["titel"]}, "no column 'titel' .did you mean 'title'"),
        (
            {"caption_columns": ["image"]},
            "neither texts nor class labels, nor lists of these: set data.caption_columns",
        ),
        ({"caption_columns": []}, "data.caption_columns is empty"),
        ({"vocabulary_size": 6}, "vocabulary_size of 6 has no room for a letter"),
        ({"tokenizer": "nowhere"}, "no tokenizer at nowhere"),
        ({"maximum_length": 2}, "data.maximum_length is 2"),
        ({"validation_split": "test"}, "has no splits"),
    ],
)
def test_what_cannot_be(pairs, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        make_pairs(pairs, tmp_path, **settings).setup("fit")


def test_the_bundled_sample_and_data_of_its_own_for_validation(pairs, tmp_path):
    data = PairDataModule(
        max_pictures=60,
        stored_size=16,
        cache_directory=str(tmp_path),
        vocabulary_size=200,
        validation_path=str(pairs),
        caption_columns=None,
    )
    # The emoji's columns are not the pairs'.
    with pytest.raises(UserError, match="not said which columns"):
        data.setup("fit")
    data = PairDataModule(max_pictures=60, cache_directory=str(tmp_path), vocabulary_size=200, batch_size=8)
    data.setup("fit")
    assert data.batch_at(0, 0)["images"].shape == (8, 3, 64, 64)
    (first, *_) = data.evaluation_loader("train")
    own = data.captions("train", first["caption_id"][first["caption_picture"] == 0].tolist())
    assert len(own) > 3 and own[0] in datasets.Dataset.from_parquet(str(data_path()))["name"]


def data_path():
    from lit_pretrain.data.sources import sample_path

    return sample_path("emoji")
