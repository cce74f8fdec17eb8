"""What an evaluation works on, checked before anything slow: parts of the data, samples, layers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule

from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.features import FeaturePooling, check_depths, probe_depths
from lit_pretrain.evaluation.labelled_data import Part, has_test_part, open_part, task_of, whole_part
from lit_pretrain.evaluation.subjects import Subject


@dataclass(frozen=True)
class EvaluationData:
    """The data for encoders of one kind.

    Attributes:
        data_module: Set up.
        train: What is learned from.
        test: What is measured on.
        task: `single_label`, `multi_label` or `regression`; null without labels.
        classes: Names of the classes; empty for regression and without labels.
    """

    data_module: Any  # with what LabelledDataModule and ImageDataModule have
    train: Part
    test: Part
    task: str | None
    classes: list[str]


def say(line: str) -> None:
    """Tell a person what is going on, apart from what is found."""
    print(line, file=sys.stderr, flush=True)


def check_one_modality(subjects: Sequence[Subject]) -> None:
    """Refuse texts and pictures in one table."""
    if len({subject.is_text for subject in subjects}) > 1:
        text, picture = (
            next(subject.name for subject in subjects if subject.is_text == kind) for kind in (True, False)
        )
        raise UserError(f"{text} reads text and {picture} pictures: evaluate them one after the other.")


def chosen_layers(subject: Subject, text: str, pooling: FeaturePooling) -> list[int]:
    """The blocks that are asked for, from 1.

    Args:
        subject: Whose blocks.
        text: `three` at even distances, `all`, `last`, or numbers with commas between.
        pooling: That their features must have.

    Raises:
        UserError: If there is no such block, or it has no such features.
    """
    depth = subject.encoder.config.readable_layers
    if text == "three":
        layers = [depth] if pooling == "encoder" else probe_depths(depth)
    elif text in ("all", "last"):
        layers = list(range(1, depth + 1)) if text == "all" else [depth]
    else:
        try:
            layers = list(dict.fromkeys(depth if number == "last" else int(number) for number in text.split(",")))
        except ValueError:
            raise UserError(f"--layers is '{text}': give three, all, last, or numbers from 1, as in 1,3,6.") from None
    check_depths(subject.encoder, layers, pooling)
    return layers


def prepare_evaluation_data(
    data_module: LightningDataModule, stage: str | None, labelled: bool, learns: bool = True
) -> EvaluationData:
    """The parts of labelled data on which a subject is measured, ready.

    Args:
        data_module: That fits the subject, its tokenizer chosen; it is set up here.
        stage: `test` or `validation`; null takes test data if there is any.
        labelled: Whether labels are needed.
        learns: Whether anything is learned from the training part; else, without test data, all is measured on.

    Raises:
        UserError: If the data cannot be had, has no labels, or labels that are not measured.
    """
    data_module.prepare_data()
    data_module.setup("validate")
    task, classes = task_of(data_module)
    if labelled and task is None:
        raise UserError("The data has no labels to measure by: give --data.label_column COLUMN.")
    if labelled and task == "multi_label":
        raise UserError(
            "Samples with several labels each are not measured by knn, linear or zero-shot: give one label column, or "
            "fine-tune."
        )
    if stage is None and not learns and not has_test_part(data_module):
        say("The data has no test part: all of it is measured on, since nothing is learned from it.")
        return EvaluationData(data_module, open_part(data_module, "train"), whole_part(data_module), task, classes)
    if stage is None and not has_test_part(data_module):
        say("The data has no test part: its validation part is measured on.")
    elif stage == "test" and not has_test_part(data_module):
        raise UserError("The data has no test part: give data.test_path or the like, or --stage validation.")
    stage = stage or ("test" if has_test_part(data_module) else "validation")
    train, test = open_part(data_module, "train", task is not None), open_part(data_module, stage, task is not None)
    return EvaluationData(data_module, train, test, task, classes)


def check_same_samples(data: EvaluationData, other: EvaluationData, name: str) -> None:
    """See that two tokenizers leave the same samples, so that figures can stand in one table.

    Args:
        data: The data of what is measured first.
        other: The data of another encoder.
        name: Of that encoder.

    Raises:
        UserError: If rows or labels differ.
    """
    for part, theirs in ((data.train, other.train), (data.test, other.test)):
        if not torch.equal(samples_of(part), samples_of(theirs)):
            raise UserError(
                f"{name} would be measured on other {part.name} samples ({len(theirs)}) than the one before it "
                f"({len(part)}): give data that both read alike by --config or --data, or evaluate them one by one."
            )


def samples_of(part: Part) -> torch.Tensor:
    """(N, 2) row of the source and label of every sample, by rows; in whatever order the part is read."""
    rows = getattr(part.dataset, "rows", None)
    rows = part.sample_ids() if rows is None else torch.from_numpy(rows[part.indices])
    labels = torch.zeros(len(rows)) if part.labels is None else part.labels
    return torch.stack([rows.double(), labels.double()], dim=1)[rows.argsort(stable=True)]


def resolution_of(subject: Subject, data: EvaluationData) -> str:
    """Size of what the encoder is given: "16 px, middle of 24, from 64" of pictures resized from 64 to 24, and cut."""
    if subject.is_text:
        return f"{data.data_module.text.maximum_length} tokens"
    size, framed, stored = subject.encoder.image_size, subject.framed_size, data.data_module.facts.stored_size
    middle = f", middle of {framed}" if framed != size else ""
    return f"{size} px{middle}" + (f", from {stored}" if stored != framed else "")
