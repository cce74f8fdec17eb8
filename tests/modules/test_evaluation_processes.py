"""Validation in two processes (gloo) has the figures of one, whatever is drawn or compared, and however few samples."""

import pyarrow.parquet
import pytest
import small_pictures
import text_corpus
import torch
from child_processes import both_ranks
from labelled_texts import TOKENIZER, make_encoder, make_texts, write_texts
from small_joint import make_joint, make_replaying, write_joint

from lit_pretrain.callbacks.prediction_writer import PredictionWriter
from lit_pretrain.callbacks.shortcut_check import ShortcutCheck
from lit_pretrain.data.labelled.labelled_data_module import LabelledDataModule
from lit_pretrain.modules import FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.objectives import (
    BagOfWords,
    Colorization,
    ContrastiveSpans,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    PatchLocation,
    ReplacedTokenDetection,
    Rotation,
)
from lit_pretrain.trainer import Trainer


def pictures(directory, **settings):
    """All that is drawn of pictures, in three batches, the last of 4, or as `settings` have it."""
    objectives = [Rotation("random"), PatchLocation(), Colorization(cell_share=0.5), MaskedImageModeling()]
    module = VisionPretraining(small_pictures.make_encoder(image_size=24), objectives)
    defaults = {"validation_share": 20 / 120}
    path = directory / "pictures24.parquet"
    return module, small_pictures.make_pictures(path, directory / "caches", **defaults | settings)


def texts(directory, layout, *objectives):
    """Objectives on texts."""
    data = text_corpus.make_data(directory / "texts.json", directory, layout=layout)
    return TextPretraining(text_corpus.make_encoder(), [make() for make in objectives]), data


def labelled(directory, column):
    """Five labelled texts, of which one process of two has none."""
    files = {"validation_data_files": str(directory / "five.parquet"), "cache_directory": str(directory)}
    data = make_texts(directory / "labelled.parquet", directory / "pieces", label_column=column, **files)
    return FineTuning(make_encoder()), data


CASES = {
    "pictures": pictures,
    "one picture": lambda directory: pictures(directory, validation_share=1 / 120),
    "BERT and ELECTRA": lambda directory: texts(
        directory, "sentence_pairs", MaskedLanguageModeling, NextSentencePrediction, ReplacedTokenDetection
    ),
    "halves": lambda directory: texts(directory, "segments", ContrastiveSpans, BagOfWords),
    "replay": lambda directory: (make_replaying(directory), make_joint(directory)),
    "a class each": lambda directory: labelled(directory, "label"),
    "classes": lambda directory: labelled(directory, "topics"),
    "numbers": lambda directory: labelled(directory, "score"),
}


def trainer_of(processes, *callbacks):
    """A quiet trainer."""
    return Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="32-true",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
    )


def validate(name, directory, processes):
    """Figures of a validation."""
    torch.manual_seed(0)
    module, data = CASES[name](directory)
    (figures,) = trainer_of(processes).validate(module, data, verbose=False)[:1]
    return figures


def predict(directory, processes):
    """Rows of the files that the predictions of five texts are in."""
    module, data = labelled(directory, "label")
    trainer_of(processes).validate(module, data, verbose=False)
    writer = PredictionWriter(str(directory / f"predictions{processes}.parquet"))
    five = LabelledDataModule("parquet", data_files=str(directory / "five.parquet"), cache_directory=str(directory))
    trainer_of(processes, writer).predict(module, five, return_predictions=False)
    return pyarrow.parquet.read_table(writer.written_to).column("sample_id").to_pylist()


def shortcuts(directory, processes):
    """Which answers the check for shortcuts counts of two of three validation batches, by feature."""
    counted = {}

    class Watched(ShortcutCheck):
        def on_validation_end(self, trainer, pl_module):
            for name, answers in self._answers.items():
                counts = trainer.strategy.reduce(torch.stack([one for _, one in answers]).sum(dim=0), reduce_op="sum")
                counted[name] = counts.tolist()

    check = Watched(validation_batches=2)
    module, data = pictures(directory)
    trainer_of(processes, check).validate(module, data, verbose=False)
    return counted


def everything(directory, processes=2):
    """What one of so many processes comes to."""
    found = {name: validate(name, directory, processes) for name in CASES}
    return found | {"predicted": predict(directory, processes), "shortcuts": shortcuts(directory, processes)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = write_joint(tmp_path_factory.mktemp("evaluation"))
    small_pictures.write_pictures(directory / "pictures24.parquet", size=24)
    write_texts(directory / "labelled.parquet")
    write_texts(directory / "five.parquet", count=5, seed=2)
    TOKENIZER.save(directory / "pieces")
    return directory


@pytest.fixture(scope="module")
def alone(directory):
    """What one process comes to, which fills the caches."""
    return everything(directory, 1)


@pytest.fixture(scope="module")
def ranks(directory, alone):
    """What each of two processes comes to."""
    return both_ranks(everything, directory)


@pytest.mark.parametrize("name", CASES)
def test_figures_do_not_depend_on_the_number_of_processes(alone, ranks, name):
    expected = alone[name]
    # How many pairs are compared at a time is a training batch's number, of all processes.
    assert len(expected) > 1 and all(rank[name].keys() == expected.keys() for rank in ranks)
    for key in expected.keys() - {"validation/loss_over_chance"} - ({"validation/loss"} if name == "replay" else set()):
        for rank in ranks:
            assert rank[name][key] == pytest.approx(expected[key], rel=1e-6, abs=1e-6), key


def test_a_process_without_samples_writes_no_predictions(alone, ranks):
    assert [rank["predicted"] for rank in ranks] == [alone["predicted"], []] and len(alone["predicted"]) == 5


def test_shortcuts_are_tried_on_the_same_draws(alone, ranks):
    assert ranks[0]["shortcuts"] == ranks[1]["shortcuts"] == alone["shortcuts"] != {}
