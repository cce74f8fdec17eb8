"""A registered model's files: the checkpoint without what only a training needs, settings, code, and MLflow's facts."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_pretrain import __version__
from lit_pretrain.commands.registration.requirements import copy_code, pinned_requirements
from lit_pretrain.commands.registration.subject import Subject
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.serving import mlflow_loader
from lit_pretrain.serving.model_settings import CHECKPOINT_NAME
from lit_pretrain.tracking.checkpoint_io import AtomicCheckpointIO

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from pandas import DataFrame

# What a training goes on with, two thirds of most checkpoints; the weights may be averages, which nothing goes on from.
OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops")
EXAMPLE_TEXT = "The first text of an example."
EXAMPLE_PAIR = (EXAMPLE_TEXT, "The second text of an example.")


def write_model(subject: Subject, model: "Model", directory: Path) -> Path:
    """Write a model as MLflow loads it, load it again, and let it answer its example.

    Args:
        subject: What is registered.
        model: MLflow's record of it, with its ids.
        directory: An empty one.

    Returns:
        The model's directory, within the one that was given.

    Raises:
        UserError: If what is needed on another machine is not known.
        MlflowException: If MLflow takes none of it.
        OSError: If there is no room.
    """
    import mlflow.pyfunc

    data, target = directory / "checkpoint", directory / "model"
    data.mkdir()
    write_checkpoint(subject.path, data / CHECKPOINT_NAME)
    subject.settings.write(data)
    with without_projects_of_uv():
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=mlflow_loader.__name__,
            data_path=str(data),
            code_paths=copy_code(subject.record, directory / "code"),
            mlflow_model=model,
            signature=signature_of(subject),
            input_example=example_of(subject),
            pip_requirements=pinned_requirements(),
            metadata=metadata_of(subject),
            model_config=subject.model_config,
        )
    places = sys.path
    try:
        mlflow.pyfunc.load_model(str(target)).predict(example_of(subject))
    finally:
        # MLflow puts the model's code first, which is about to move.
        sys.path = places
    return target


def write_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint without what only a training needs; its weights are the averages where it has some."""
    checkpoint = read_checkpoint(source)
    AtomicCheckpointIO().save_checkpoint(
        {name: value for name, value in checkpoint.items() if name not in OF_TRAINING}, target
    )


@contextmanager
def without_projects_of_uv() -> Iterator[None]:
    """Keep MLflow from taking the project that a person happens to stand in for the model's."""
    name = "MLFLOW_UV_AUTO_DETECT"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def signature_of(subject: Subject) -> "ModelSignature":
    """What a model takes and answers, by MLflow's types; pictures are bytes, which JSON has in base64."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    taken = DataType.string if subject.settings.kind == "text" else DataType.binary
    numbers, facts = Array(DataType.float), subject.facts
    if facts is None:
        answered = [ColSpec(numbers, "embedding")]
    elif facts.task == "regression":
        answered = [ColSpec(DataType.float, "value")]
    else:
        label: Any = Array(DataType.string) if facts.task == "multi_label" else DataType.string
        answered = [ColSpec(label, "label"), ColSpec(numbers, "probability")]
    inputs: list[Any] = [ColSpec(taken, column) for column in subject.settings.columns]
    outputs: list[Any] = answered
    return ModelSignature(Schema(inputs), Schema(outputs))


def example_of(subject: Subject) -> "DataFrame":
    """A row that shows what is taken, none of anybody's data."""
    import pandas

    columns = subject.settings.columns
    if subject.settings.kind == "text":
        texts = EXAMPLE_PAIR if len(columns) > 1 else (EXAMPLE_TEXT,)
        return pandas.DataFrame([dict(zip(columns, texts, strict=True))])
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(buffer, format="PNG")
    return pandas.DataFrame({columns[0]: [buffer.getvalue()]})


def metadata_of(subject: Subject) -> dict[str, Any]:
    """What MLflow keeps of the model beside its signature."""
    facts = subject.facts
    classes = {"classes": list(facts.classes)} if facts is not None and facts.classes else {}
    return {**classes, **subject.fingerprints, "lit_pretrain": __version__, "torch": str(torch.__version__)}
