"""Streamed pairs: from tables, tar shards and folders, exact resume in a training, captions that are missing."""

import io
import json
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning import seed_everything
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs, write_tokenizer
from text_corpus import StopAt3, fit

from lit_pretrain.data import ImageDataModule, JointDataModule, PairDataModule
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs as a table, as tar shards and as a folder, and a tokenizer."""
    directory = tmp_path_factory.mktemp("streamed")
    rows = make_rows(40)
    write_pairs(directory / "pairs.parquet", rows)
    write_tokenizer(directory / "tokenizer")
    (directory / "folder").mkdir()
    (directory / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(directory / "shards" / f"{shard}.tar", "w") as archive:
            for row in range(shard * 20, shard * 20 + 20):
                content = io.BytesIO()
                rows["image"][row].save(content, "PNG")
                caption = rows["title"][row]
                files = {"png": content.getvalue(), "json": json.dumps({"caption": caption}).encode()}
                files["txt"] = caption.encode()
                for ending, value in files.items():
                    member = tarfile.TarInfo(f"{row:03}.{ending}")
                    member.size = len(value)
                    archive.addfile(member, io.BytesIO(value))
                    if ending != "json":
                        (directory / "folder" / f"{row:03}.{ending}").write_bytes(value)
    return directory


def streamed(directory: Path, **settings: object) -> PairDataModule:
    defaults = {"streaming": True, "shuffle_buffer": 10, "tokenizer": str(directory / "tokenizer"), "batch_size": 4}
    return make_pairs(directory / "pairs.parquet", directory / "caches", **defaults | settings)


def loader_of(data: PairDataModule):
    data.setup("fit")
    return data.train_dataloader()


@pytest.mark.parametrize(
    ("place", "columns", "workers"),
    [("pairs.parquet", ["title"], 0), ("shards", "json.caption", 2), ("shards", "txt", 0), ("folder", "txt", 0)],
)
def test_pairs_of_any_source(place: str, columns: object, workers: int, directory: Path) -> None:
    """Every picture once with its own caption; a loader goes on exactly, longer captions met in mid-batch and all."""
    settings = {"path": str(directory / place), "caption_columns": columns, "workers": workers, "maximum_length": 16}
    settings |= {"cache_directory": str(directory / "caches"), "tokenizer": str(directory / "tokenizer")}
    settings |= {"streaming": True, "shuffle_buffer": 10, "batch_size": 3, "validation_share": 0.2, "seed": 1}

    def make() -> PairDataModule:
        return PairDataModule(**settings)

    data = make()
    batches = list(islice(loader_of(data), 24))
    titles = make_rows(40)["title"]
    found = [
        data.tokenizer.decode([piece for piece in ids.tolist() if piece])
        for batch in batches
        for ids in batch["input_ids"]
    ]
    assert len(set(found)) == 38 and set(found) <= {title.replace("#", "") for title in titles}
    samples = [int(sample) for batch in batches for sample in batch["sample_id"]]
    by_sample = dict(zip(samples, found, strict=True))
    assert len(set(samples)) == 38
    (shown,) = data.raw_samples("train", [samples[5]])
    assert shown["captions"] == [by_sample[samples[5]]]
    assert len(data.galleries["validation"]) == 2
    killed = loader_of(make())
    list(islice(killed, 7))
    resumed = loader_of(make())
    resumed.load_state_dict(killed.state_dict())
    for expected, batch in zip(batches[7:], resumed, strict=False):
        assert all(torch.equal(torch.as_tensor(expected[name]), torch.as_tensor(batch[name])) for name in expected)


def test_a_training_goes_on_exactly(directory: Path, tmp_path: Path) -> None:
    """Several captions a picture, of which one is drawn; with retrieval on what is held out."""

    def train(checkpoint: Path | None = None, **settings: object):
        seed_everything(0)
        module = ContrastivePretraining(**make_encoders(), embedding_width=16, seed=0)
        limits = {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
        return fit(module, streamed(directory), checkpoint, **limits | settings), module

    _, undisturbed = train()
    trainer, _ = train(callbacks=[StopAt3()])
    trainer.save_checkpoint(tmp_path / "third.ckpt")
    resumed_trainer, resumed = train(tmp_path / "third.ckpt")
    assert "validation/text_to_picture/recall_at_1" in resumed_trainer.callback_metrics
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in undisturbed.state_dict().items())


def test_what_a_stream_cannot_do_is_a_sentence(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a tokenizer would be trained on all of them: set data\.tokenizer"):
        streamed(directory, tokenizer=None).prepare_data()
    with pytest.raises(UserError, match="no column 'titel'"):
        streamed(directory, caption_columns="titel").prepare_data()
    with pytest.raises(UserError, match=r"data\.pairs\.streaming"):
        JointDataModule(streamed(directory), text=None, vision=_vision(directory))
    rows = make_rows(12)
    rows["title"][7] = ""
    path = write_pairs(tmp_path / "empty.parquet", rows)
    settings = {"caption_columns": "title", "data_files": str(path)}
    with pytest.raises(UserError, match="Row 7 of shard 0 of .* has an empty caption"):
        PairDataModule("parquet", **_settings(directory), **settings).prepare_data()
    data = PairDataModule("parquet", **_settings(directory), **settings, empty_captions="skip")
    seen = {int(sample) for batch in islice(loader_of(data), 6) for sample in batch["sample_id"]}
    assert 7 not in seen and len(seen) == 10


def _settings(directory: Path) -> dict:
    settings = {"streaming": True, "shuffle_buffer": 20, "validation_share": 0.05, "batch_size": 2}
    return settings | {"tokenizer": str(directory / "tokenizer"), "cache_directory": str(directory / "caches")}


def _vision(directory: Path):
    return ImageDataModule(str(directory / "folder"))
