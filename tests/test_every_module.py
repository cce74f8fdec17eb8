"""Every LightningModule through `fit`, `validate`, `test` and `predict`; what it started from is gone by then."""

import shutil

import process_memory
import pyarrow.parquet
import pytest
import torch
from labelled_texts import SPELLING, write_texts
from lightning import Trainer
from small_pairs import make_rows, write_pairs
from small_pictures import write_pictures
from small_training import training_of, write_config
from text_corpus import write_corpus

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.cli.lightning_cli import CommandLine, command_line

START = "start"
TRANSFORMER = {"depth": 1, "width": 16, "heads": 2, "norm_order": "pre", "norm_epsilon": 1e-6}
SIZES = {"image_size": 20, "patch_size": 4, "class_token": False, "pooling": "map"}


def part(name, **settings):
    """A class of a config with its arguments."""
    return {"class_path": name, "init_args": settings}


TEXTS = part("TextEncoder", max_positions=32, transformer=TRANSFORMER)
PICTURES = part("VisionEncoder", **SIZES, transformer=TRANSFORMER)
TOWERS = {"text_encoder": TEXTS, "vision_encoder": PICTURES, "embedding_width": 8, "chunk_size": 3}
OLD_TEXTS = part("lit_pretrain.backbone.TextEncoder.from_pretrained", path_or_hub_name=f"{START}/text")
OLD_PICTURES = part("lit_pretrain.backbone.VisionEncoder.from_pretrained", source=f"{START}/vision")


def documents(**settings):
    return part(
        "DocumentDataModule",
        path="corpus.jsonl",
        **SPLIT | {"tokenizer": "tokenizer", "sequence_length": 16} | settings,
    )


def pictures():
    return part("ImageDataModule", path="pictures.parquet", **SPLIT)


def pairs(**settings):
    columns = ["title", "others"]
    return part("PairDataModule", path="pairs.parquet", caption_columns=columns, maximum_length=16, **SPLIT | settings)


def labelled(**settings):
    return part("LabelledDataModule", maximum_length=16, **SPLIT | settings)


SPLIT = {"batch_size": 8, "validation_share": 0.2}
# Model and data of each; what names START starts from weights that are gone after `fit`.
CASES = {
    "masked and replaced words, sentences": (
        part(
            "TextPretraining",
            encoder=OLD_TEXTS,
            objectives=[
                part(name) for name in ("MaskedLanguageModeling", "NextSentencePrediction", "ReplacedTokenDetection")
            ],
        ),
        documents(tokenizer=f"{START}/text"),
    ),
    "next words and halves": (
        part(
            "TextPretraining",
            encoder=part("TextEncoder", max_positions=32, transformer=TRANSFORMER, ngrams=2, ngram_rows=50),
            objectives=[
                part(name) for name in ("CausalLanguageModeling", "ContrastiveSpans", "BagOfWords", "BagOfNgrams")
            ],
        ),
        documents(layout="segments"),
    ),
    "pictures": (
        part(
            "VisionPretraining",
            encoder=OLD_PICTURES,
            objectives=[
                part(name)
                for name in ("Rotation", "PatchLocation", "Colorization", "MaskedImageModeling", "Jigsaw", "LeJEPA")
            ],
        ),
        pictures(),
    ),
    "clip, locked": (
        part(
            "ContrastivePretraining",
            text={"init_from": f"{START}/text"},
            vision={"init_from": f"{START}/vision", "locked": True},
            chunk_size=3,
        ),
        pairs(),
    ),
    "siglip, shared, replayed": (
        part(
            "ContrastivePretraining",
            **TOWERS,
            share_weights="blocks",
            objective=part("Contrastive", loss="siglip", duplicates="mask"),
            text_replay={"objectives": [part("MaskedLanguageModeling"), part("SentenceOrder")]},
        ),
        part("JointDataModule", pairs=pairs(), text=documents(random_next="never")),
    ),
    "several classes": (
        part("FineTuning", encoder=OLD_TEXTS, freeze={"blocks": 1}),
        labelled(path="labelled.parquet", label_column="topics", tokenizer=f"{START}/text"),
    ),
    "a number": (
        part("FineTuning", encoder=TEXTS),
        labelled(path="labelled.parquet", text_pair_column="other", label_column="exact", tokenizer="tokenizer"),
    ),
    "a class of pictures": (
        part("FineTuning", encoder=PICTURES, mixing={"mixup": 0.8}),
        labelled(path="pictures.parquet", image_column="image"),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A directory with data of every kind, in which all commands are given."""
    directory = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(directory)
        write_corpus(directory / "corpus.jsonl", 20)
        write_pictures(directory / "pictures.parquet", 20, size=24)
        write_pairs(directory / "pairs.parquet", make_rows(20, size=24))
        write_texts(directory / "labelled.parquet", 40)
        SPELLING.save(directory / "tokenizer")
        yield directory


@pytest.fixture
def start(place):
    """Public weights of both kinds."""
    torch.manual_seed(0)
    transformer = TransformerConfig(**TRANSFORMER | {"norm_order": "post", "norm_epsilon": 1e-12})
    encoder = TextEncoder(vocabulary_size=SPELLING.vocabulary_size, max_positions=32, transformer=transformer)
    encoder.save_pretrained(place / START / "text")
    SPELLING.save(place / START / "text")
    VisionEncoder(**SIZES, transformer=VisionTransformerConfig(**TRANSFORMER)).save_pretrained(place / START / "vision")
    yield place / START
    shutil.rmtree(place / START, ignore_errors=True)


def check_precisions(fitted, validated, place):
    """Draws, sums and counts are the same in every precision; metrics to what features are rounded to, and a step runs.

    Args:
        fitted: The command that trained, with its data.
        validated: Metrics in float32.
        place: A directory.
    """
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "max_steps": 1}
    settings |= {"num_sanity_val_steps": 0, "enable_checkpointing": False, "default_root_dir": place}
    for precision, rounding in {"bf16-mixed": 0.02, "bf16-true": 0.02, "16-true": 0.005, "64-true": 1e-3}.items():
        process_memory.collect(beyond=process_memory.MUCH)
        module = type(fitted.model).from_checkpoint("last")
        trainer = Trainer(precision=precision, **settings)
        trainer.validate(module, fitted.datamodule, verbose=False)
        assert trainer.callback_metrics.keys() == validated.keys()
        for key, value in validated.items():
            # What is counted of a few samples may change by one of them.
            counted = any(word in key for word in ("accuracy", "recall", "rank", "found", "f1"))
            tolerance = {"rel": rounding, "abs": 0.13 if counted else rounding}
            assert trainer.callback_metrics[key].item() == pytest.approx(value.item(), **tolerance), (precision, key)
        trainer = Trainer(precision=precision, **settings, limit_val_batches=0)
        trainer.fit(module, fitted.datamodule)
        assert trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize("name", CASES)
def test_fit_validate_test_predict_and_go_on(place, start, name):
    trainer = {"max_steps": 2, "val_check_interval": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    model, data = CASES[name]
    path = str(write_config(place / "config.yaml", training_of(model, data, trainer)))
    first = command_line(["fit", "--config", path], CommandLine)
    fitted = first.trainer.callback_metrics
    shutil.rmtree(start)
    last = first.trainer.checkpoint_callback.last_model_path
    given = ["--config", path, "--ckpt_path", last, "--trainer.logger", "false"]

    validated = command_line(["validate", *given], CommandLine).trainer.callback_metrics
    assert validated and {key: fitted[key] for key in validated} == validated
    tested = command_line(["test", *given], CommandLine).trainer.callback_metrics
    assert {key.removeprefix("test/") for key in tested} == {key.removeprefix("validation/") for key in validated}
    command_line(["predict", *given, "--trainer.default_root_dir", str(place)], CommandLine)
    embeddings = pyarrow.parquet.read_table(place / "predictions.parquet").column("embedding").to_pylist()
    assert torch.tensor(embeddings).isfinite().all()
    check_precisions(first, validated, place)
    if START in str(CASES[name]):
        line = command_line(["fit", *given, "--trainer.max_steps", "3"], CommandLine)
        assert line.trainer.global_step == 3
        assert getattr(line.model, "lineage", None) == getattr(first.model, "lineage", None)
