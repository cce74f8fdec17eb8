"""What is registered: a checkpoint with what it answers, and how its run has read rows."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from jsonargparse import Namespace

from lit_pretrain.cli.lightning_cli import read_config
from lit_pretrain.cli.prediction_data import settings_of_side
from lit_pretrain.data import LabelledDataModule
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.serving.model_settings import DEFAULTS, ModelSettings
from lit_pretrain.serving.predictor import KINDS
from lit_pretrain.tracking.find import (
    RunRecord,
    best_checkpoint_of,
    find_checkpoint,
    read_run_file,
    run_directory_of_checkpoint,
    split_tower,
)
from lit_pretrain.tracking.paths import RUN_FILE_NAME, shown_path

Kind = Literal["text", "image"]
# What a checkpoint is called that embeds one of the two.
TOWER_KINDS: dict[str, Kind] = {"text": "text", "vision": "image", "image": "image"}
TASKS = {
    "single_label": "classification",
    "multi_label": "classification (several classes)",
    "regression": "regression",
}


@dataclass(frozen=True)
class Subject:
    """A checkpoint, found and read.

    Attributes:
        path: The file.
        record: What it tells of itself.
        step: Optimiser steps that it was trained for.
        run: The run that has written it; null for a copy that lies by itself.
        settings: How rows are read.
        model_config: What is in `DEFAULTS`, as its run had it.
    """

    path: Path
    record: dict[str, Any]
    step: int
    run: RunRecord | None
    settings: ModelSettings
    model_config: dict[str, Any]

    @property
    def facts(self) -> LabelFacts | None:
        """What it tells of a row; null where it embeds."""
        return LabelFacts.from_dict(self.record["label_facts"]) if "label_facts" in self.record else None

    @property
    def best_step(self) -> int | None:
        """The step of its run's best checkpoint; null where none was kept."""
        best = best_checkpoint_of(self.run) if self.run is not None else None
        return None if best is None else int(read_checkpoint(best)["global_step"])

    @property
    def task(self) -> str:
        """What it does, in a few words."""
        facts = self.facts
        if self.settings.kind == "image":
            return f"picture {TASKS[facts.task]}" if facts else "embeddings of pictures"
        pair = len(self.settings.columns) > 1
        return f"text{' pair' if pair else ''} {TASKS[facts.task]}" if facts else "embeddings of texts"

    @property
    def fingerprints(self) -> dict[str, str]:
        """By what the model, its data and its weights' origin are known again."""
        found = {
            "task": self.task,
            "checkpoint": str(self.path),
            "step": str(self.step),
            "data_fingerprint": self.record.get("data_fingerprint", ""),
            "tokenizer_hash": self.record.get("tokenizer_hash", "") if self.settings.kind == "text" else "",
            "run_name": self.run.run_name if self.run else "",
            "run_id": self.run.run_id if self.run else "",
        }
        found |= {name: str(value) for name, value in (self.record.get("lineage") or {}).items()}
        return {name: value for name, value in found.items() if value}


def open_subject(reference: str, tower: str | None = None, config: str | None = None) -> Subject:
    """Find and read a checkpoint.

    Args:
        reference: "last", a run's name or id, "RUN:best", or a file; "...:text" or "...:vision" for one of two towers.
        tower: `text` or `image`, instead of the reference's end.
        config: Whose data and precision hold; null takes the config of the checkpoint's run.

    Raises:
        UserError: If there is none, it is of no kind that can be served, or how it reads rows is not known.
    """
    reference, named = split_tower(reference)
    if tower and named and TOWER_KINDS[tower] != TOWER_KINDS[named]:
        raise UserError(f"--tower {tower} and {reference}:{named} name two towers: leave one of the two out.")
    path = find_checkpoint(reference)
    checkpoint = read_checkpoint(path)
    record = checkpoint["lit_pretrain"]
    if record["module"] not in KINDS:
        raise UserError(
            f"{shown_path(path)} is a checkpoint of {record['module']}, which cannot be served: give one of "
            f"{', '.join(KINDS)}."
        )
    kind = kind_of(path, record, tower or named)
    directory = run_directory_of_checkpoint(path)
    run = read_run_file(directory / RUN_FILE_NAME) if directory is not None else None
    if config is None and directory is not None and (directory / "config.yaml").is_file():
        config = str(directory / "config.yaml")
    if config is None and "label_facts" in record:
        raise UserError(
            f"{shown_path(path)} has no config.yaml of its run beside it, which would say what it reads: give --config."
        )
    content = read_config(config) if config is not None else {}
    settings = settings_of(kind, record, (content.get("data") or {}).get("init_args") or {})
    return Subject(path, record, int(checkpoint["global_step"]), run, settings, model_config_of(content))


def kind_of(path: Path, record: dict[str, Any], tower: str | None) -> Kind:
    """Whether a checkpoint is to read texts or pictures.

    Raises:
        UserError: If it has two towers and none is named, or one and one is named.
    """
    if record["module"] == "ContrastivePretraining":
        if tower is None:
            raise UserError(
                f"{shown_path(path)} embeds texts and pictures, and a registered model does one of them: give --tower "
                "text or --tower image."
            )
        if TOWER_KINDS[tower] == "text" and "tokenizer" not in record:
            raise UserError(f"{shown_path(path)} holds no tokenizer, without which texts cannot be read.")
        return TOWER_KINDS[tower]
    if tower is not None:
        raise UserError(
            f"{shown_path(path)} holds one {record['encoder_class']} and no two towers: leave the tower out."
        )
    return "text" if "tokenizer" in record else "image"


def settings_of(kind: Kind, record: dict[str, Any], data: dict[str, Any]) -> ModelSettings:
    """How `predict` would read rows of a table like the training's.

    Args:
        kind: What they hold.
        record: Of the checkpoint.
        data: Settings of the training's data, by their names.

    Raises:
        UserError: If the data is of the other kind.
    """
    labelled = "label_facts" in record
    if labelled and (data.get("image_column") is not None) != (kind == "image"):
        held, needed = ("pictures", "texts") if kind == "text" else ("texts", "pictures")
        raise UserError(f"The config's data holds {held}, and the checkpoint reads {needed}: give --config another.")
    if kind == "image":
        column = str(data["image_column"]) if labelled else "image"
        side = (data if labelled else settings_of_side(kind, record, Namespace(data))).get("stored_size")
        return ModelSettings(kind, (column,), stored_size=None if side is None else int(side))
    column, other = data.get("text_column") or "text", data.get("text_pair_column")
    if labelled:
        columns = (column, *([other] if other is not None else []))
        limits = record["modality"]
    else:
        columns = (column,)
        limits = settings_of_side(kind, record, Namespace(data)) | {"truncation": data.get("truncation")}
    maximum_length = int(limits.get("maximum_length") or default_of("maximum_length"))
    truncation = limits.get("truncation") if len(columns) == 1 else None
    return ModelSettings(kind, columns, maximum_length, cast(Any, truncation or "head"))


def model_config_of(config: dict[str, Any]) -> dict[str, Any]:
    """Device, precision and batches that `predict` would have with a config."""
    trainer, data = config.get("trainer") or {}, (config.get("data") or {}).get("init_args") or {}
    precision = trainer.get("precision")
    return DEFAULTS | {
        "device": "cpu" if trainer.get("accelerator") == "cpu" else DEFAULTS["device"],
        "precision": str(DEFAULTS["precision"] if precision is None else precision),
        "batch_size": int(data.get("batch_size") or default_of("batch_size")),
    }


def default_of(setting: str) -> Any:
    """What a setting of `LabelledDataModule` is where it is not given."""
    return inspect.signature(LabelledDataModule).parameters[setting].default
