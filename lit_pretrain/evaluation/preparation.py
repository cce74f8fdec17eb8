"""What an evaluation works on, checked before anything slow: data that fit the encoders, parts, layers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning import LightningDataModule

from lit_pretrain.cli.evaluation_data import make_data
from lit_pretrain.data.text.text_encoding import choose_tokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.features import FeaturePooling, check_depths, probe_depths
from lit_pretrain.evaluation.labelled_data import Part, has_test_part, open_part, task_of, whole_part
from lit_pretrain.evaluation.subjects import Subject

DEFAULT_CLASSES = {True: "LabelledDataModule", False: "ImageDataModule"}


@dataclass(frozen=True)
class EvaluationData:
    """The data for encoders of one kind.

    Attributes:
        data: The data module, set up.
        train: What is learned from.
        test: What is measured on.
        task: `single_label`, `multi_label` or `regression`; null without labels.
        classes: Names of the classes; empty for regression and without labels.
    """

    data: LightningDataModule
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
        text, picture = (next(one.name for one in subjects if one.is_text == kind) for kind in (True, False))
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
            layers = list(dict.fromkeys(depth if one == "last" else int(one) for one in text.split(",")))
        except ValueError:
            raise UserError(f"--layers is '{text}': give three, all, last, or numbers from 1, as in 1,3,6.") from None
    check_depths(subject.encoder, layers, pooling)
    return layers


def prepare_ground(
    subject: Subject,
    config: str | None,
    settings: list[str],
    stage: str | None,
    labelled: bool,
    learns: bool = True,
    compared: Sequence[Subject] = (),
) -> EvaluationData:
    """Data that a subject can be measured on, ready.

    Args:
        subject: Whose tokenizer is taken.
        config: A config whose data is taken, or null.
        settings: `--data...` arguments.
        stage: `test` or `validation`; null takes test data if there is any.
        labelled: Whether labels are needed.
        learns: Whether anything is learned from the training part; else, without test data, all is measured on.
        compared: All that are measured on the same data, which is that of the first one's run if no config is named;
            none but the subject by default.

    Raises:
        UserError: If the data cannot be had, is of the other modality, has no labels, or labels that are not measured.
    """
    first, named = (compared or [subject])[0], config
    if first.pair is not None and config is None:
        # Its own data are pairs, without classes.
        settings = like_its_own(subject, settings)
    else:
        config = config or (str(first.config) if first.config else None)
    data = make_data(config, settings, DEFAULT_CLASSES[subject.is_text])
    check_modality(subject, data, config)
    stored, needed = getattr(data, "stored_size", None), max((one.framed_size for one in compared), default=0)
    if named is None and stored is not None and stored < needed and not is_given("stored_size", settings):
        # Else those that look at larger pictures than the first one would be shown blurred ones.
        data = make_data(config, [*settings, "--data.stored_size", str(needed)], DEFAULT_CLASSES[subject.is_text])
    if subject.is_text:
        # Without a trainer the data cannot ask the model for its tokenizer. That of the first one's run is its own.
        inherited = named is None and subject is not first and not is_given("tokenizer", settings)
        given = None if inherited else data.tokenizer_path
        data.tokenizer = subject.tokenizer if given is None else choose_tokenizer(given, None, subject.tokenizer)
    data.prepare_data()
    data.setup("validate")
    task, classes = task_of(data)
    if labelled and task is None:
        raise UserError("The data has no labels to measure by: give --data.label_column COLUMN.")
    if labelled and task == "multi_label":
        raise UserError(
            "Samples with several labels each are not measured by knn, linear or zero-shot: give one label column, or "
            "fine-tune."
        )
    if stage is None and not learns and not has_test_part(data):
        say("The data has no test part: all of it is measured on, since nothing is learned from it.")
        return EvaluationData(data, open_part(data, "train"), whole_part(data), task, classes)
    if stage is None and not has_test_part(data):
        say("The data has no test part: its validation part is measured on.")
    elif stage == "test" and not has_test_part(data):
        raise UserError("The data has no test part: give data.test_path or the like, or --stage validation.")
    stage = stage or ("test" if has_test_part(data) else "validation")
    train, test = open_part(data, "train", task is not None), open_part(data, stage, task is not None)
    return EvaluationData(data, train, test, task, classes)


def like_its_own(subject: Subject, settings: list[str]) -> list[str]:
    """Settings of labelled data, with the size of pictures and the length of texts that two towers were trained with.

    Args:
        subject: One of the towers.
        settings: `--data...` arguments, which win.

    Raises:
        UserError: If there are none.
    """
    if not settings:
        raise UserError(without_classes(subject, f"{subject.name} was trained on pairs"))
    name = "maximum_length" if subject.is_text else "stored_size"
    return (
        settings
        if is_given(name, settings) or name not in subject.inputs
        else [*settings, f"--data.{name}", str(subject.inputs[name])]
    )


def is_given(name: str, settings: Sequence[str]) -> bool:
    """Whether a setting of the data is among `--data...` arguments."""
    options = {f"--data.{name}", f"--data.init_args.{name}"}
    return any(setting.partition("=")[0] in options for setting in settings)


def check_same_samples(ground: EvaluationData, other: EvaluationData, name: str) -> None:
    """See that two tokenizers leave the same samples, so that figures can stand in one table.

    Args:
        ground: The data of what is measured first.
        other: The data of another encoder.
        name: Of that encoder.

    Raises:
        UserError: If rows or labels differ.
    """
    for part, theirs in ((ground.train, other.train), (ground.test, other.test)):
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


def without_classes(subject: Subject, what: str) -> str:
    """What is said of pairs.

    Args:
        subject: What is to be measured.
        what: Which pairs.
    """
    module, column = ("LabelledDataModule", "text") if subject.is_text else ("ImageDataModule", "image")
    return (
        f"{what}, which have no classes: give labelled data by --config FILE, or by --data {module} --data.path ... "
        f"--data.{column}_column ... --data.label_column ..."
    )


def check_modality(subject: Subject, data: LightningDataModule, config: str | None) -> None:
    """Refuse pictures for a text encoder, texts for a picture encoder, documents, and texts that are too long."""
    from lit_pretrain.data import DocumentDataModule, PairDataModule

    kind = type(data).__name__
    if isinstance(data, PairDataModule):
        raise UserError(without_classes(subject, f"The data of {config or 'the command line'} are pairs"))
    if isinstance(data, DocumentDataModule):
        named = f" of {config}" if config else ""
        raise UserError(
            f"The data{named} is a DocumentDataModule, whose documents have no labels: give labelled texts by --config "
            "FILE, or by --data LabelledDataModule --data.path ... --data.text_column ... --data.label_column ..."
        )
    text = getattr(data, "text", None)
    if (text is not None) != subject.is_text:
        reads, holds = ("text", "pictures") if subject.is_text else ("pictures", "text")
        raise UserError(f"{subject.name} reads {reads}, and the {kind} holds {holds}: give data of its kind.")
    if subject.is_text and subject.encoder.positions == "learned":
        most = subject.encoder.max_positions
        if text.maximum_length > most:
            raise UserError(
                f"{subject.name} reads {most} tokens at most, and data.maximum_length is {text.maximum_length}: give "
                f"--data.maximum_length {most}."
            )


def resolution_of(subject: Subject, ground: EvaluationData) -> str:
    """Size of what the encoder is given: "16 px, middle of 24, from 64" of pictures resized from 64 to 24, and cut."""
    if subject.is_text:
        return f"{ground.data.text.maximum_length} tokens"
    size, framed, stored = subject.encoder.image_size, subject.framed_size, ground.data.facts.stored_size
    middle = f", middle of {framed}" if framed != size else ""
    return f"{size} px{middle}" + (f", from {stored}" if stored != framed else "")
