"""Streamed pictures: each once a pass over workers and processes, exact resume, what a stream of pictures cannot do."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch
from child_processes import both_ranks
from lightning import Callback, seed_everything
from small_pictures import make_encoder, write_pictures
from text_corpus import StopAt3, fit

from lit_pretrain.data import ImageDataModule, LabelledDataModule
from lit_pretrain.errors import UserError
from lit_pretrain.modules import VisionPretraining
from lit_pretrain.objectives import Colorization, Rotation

COUNT = 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("streamed") / "pictures.parquet", count=COUNT, size=16)


def streamed(path: Path, **settings: object) -> ImageDataModule:
    defaults = {"batch_size": 4, "validation_share": 0.2, "seed": 1, "shuffle_buffer": 15, "image_column": "image"}
    caches = str(path.parent / "caches")
    return ImageDataModule(str(path), cache_directory=caches, streaming=True, **defaults | settings)


def loader_of(data: ImageDataModule):
    data.setup("fit")
    return data.train_dataloader()


@pytest.mark.parametrize("workers", [0, 3])
def test_every_picture_is_once_in_a_pass_and_a_loader_goes_on(workers: int, pictures: Path) -> None:
    """There is one shard, which all workers read; nothing of the validation is trained on."""
    data = streamed(pictures, workers=workers)
    loader = loader_of(data)
    # 57 rows are trained on, and 20 batches have room for 80: all workers have begun their second pass.
    batches = list(islice(loader, 20))
    seen = Counter(int(sample) for batch in batches for sample in batch["sample_id"])
    held_out = {int(sample) for batch in data.val_dataloader() for sample in batch["sample_id"]}
    assert len(held_out) == 3 and not held_out & seen.keys()
    assert len(seen) == COUNT - 3 and set(seen.values()) <= {1, 2}
    shown = data.raw_samples("train", batches[2]["sample_id"].tolist())
    assert [tensor_of(one["image"]).shape for one in shown] == [(3, 16, 16)] * 4
    assert torch.equal(tensor_of(shown[1]["image"]), batches[2]["images"][1])
    killed = loader_of(streamed(pictures, workers=workers))
    list(islice(killed, 7))
    resumed = loader_of(streamed(pictures, workers=workers))
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    for expected, batch in zip(batches[7:], resumed, strict=False):
        assert all(torch.equal(expected[name], batch[name]) for name in expected)


def tensor_of(image) -> torch.Tensor:
    return torch.from_numpy(numpy.asarray(image).transpose(2, 0, 1).copy())


class Noting(Callback):
    """Keeps which samples are trained on."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += batch["sample_id"].tolist()


def train(path: Path, checkpoint: Path | None = None, stopped: bool = False, **settings: object):
    """Six steps on the stream or three of them, and what they were shown."""
    seed_everything(0)
    module = VisionPretraining(make_encoder(), [Rotation(views="random"), Colorization()], seed=0)
    noting = Noting()
    callbacks = [noting, *([StopAt3()] if stopped else [])]
    return fit(module, streamed(path), checkpoint, callbacks=callbacks, **settings), module, noting.seen


def test_a_training_goes_on_exactly(pictures: Path, tmp_path: Path) -> None:
    _, undisturbed, seen = train(pictures)
    trainer, _, before = train(pictures, stopped=True)
    trainer.save_checkpoint(tmp_path / "third.ckpt")
    _, resumed, after = train(pictures, tmp_path / "third.ckpt")
    assert [*before, *after] == seen and len(set(seen)) == 24
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in undisturbed.state_dict().items())


def of_a_process(directory: Path) -> dict:
    """What one of two processes sees in a training, and in one that was ended and gone on with."""
    path, settings = directory / "pictures.parquet", {"devices": 2, "strategy": "ddp"}
    _, undisturbed, seen = train(path, **settings)
    trainer, _, before = train(path, stopped=True, **settings)
    trainer.save_checkpoint(path.with_name("third.ckpt"))
    _, resumed, after = train(path, path.with_name("third.ckpt"), **settings)
    same = all(torch.equal(value, resumed.state_dict()[name]) for name, value in undisturbed.state_dict().items())
    return {"seen": seen, "again": [*before, *after], "same": same}


def test_two_processes_share_a_stream_and_go_on(pictures: Path) -> None:
    """No picture comes to both, and the checkpoint, which one of them writes, knows where the other stands."""
    first, second = both_ranks(of_a_process, pictures.parent)
    assert len({*first["seen"], *second["seen"]}) == 48
    for rank in (first, second):
        assert rank["again"] == rank["seen"] and rank["same"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_column": "label", "label_budget": 10}, "data.label_budget draws from all labels"),
        ({"label_column": "label"}, "classes that must all be known before"),
        ({"max_pictures": 10}, "data.max_pictures takes rows"),
        ({"cache": True}, "data.cache keeps all pictures decoded"),
        ({"image_column": "imgae"}, "no column 'imgae'"),
    ],
)
def test_what_a_stream_cannot_do_is_a_sentence(settings: dict, sentence: str, pictures: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        streamed(pictures, **settings).prepare_data()


def test_labels_are_not_streamed(pictures: Path) -> None:
    with pytest.raises(UserError, match="fine-tuning must know all labels"):
        LabelledDataModule(str(pictures), streaming=True)
