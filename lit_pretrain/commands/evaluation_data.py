"""The data on which `evaluate` measures encoders: built from a config or the command line, and checked to fit them."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningDataModule

from lit_pretrain.cli.evaluation_data import make_data
from lit_pretrain.data import DocumentDataModule, PairDataModule
from lit_pretrain.data.text.text_encoding import choose_tokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.subjects import Subject
from lit_pretrain.required import required

DEFAULT_CLASSES = {True: "LabelledDataModule", False: "ImageDataModule"}


def make_evaluation_data(
    subject: Subject, config: str | None, settings: list[str], compared: Sequence[Subject] = ()
) -> LightningDataModule:
    """A data module that a subject can be measured on, not set up yet.

    Args:
        subject: Whose tokenizer is taken.
        config: A config whose data is taken, or null.
        settings: `--data...` arguments.
        compared: All that are measured on the same data, which is that of the first one's run if no config is named;
            none but the subject by default.

    Raises:
        UserError: If the data cannot be built, or is of the other modality or without classes.
    """
    first_subject, named_config = (compared or [subject])[0], config
    if first_subject.pair is not None and config is None:
        # Its own data are pairs, without classes.
        settings = like_its_own(subject, settings)
    else:
        config = config or (str(first_subject.config) if first_subject.config else None)
    data = make_data(config, settings, DEFAULT_CLASSES[subject.is_text])
    check_modality(subject, data, config)
    stored, needed = (
        getattr(data, "stored_size", None),
        max((other_subject.framed_size for other_subject in compared), default=0),
    )
    if named_config is None and stored is not None and stored < needed and not is_given("stored_size", settings):
        # Else those that look at larger pictures than the first one would be shown blurred ones.
        data = make_data(config, [*settings, "--data.stored_size", str(needed)], DEFAULT_CLASSES[subject.is_text])
    if subject.is_text:
        # Without a trainer the data cannot ask the model for its tokenizer. That of the first one's run is its own.
        inherited = named_config is None and subject is not first_subject and not is_given("tokenizer", settings)
        texts: Any = data
        path = None if inherited else texts.tokenizer_path
        texts.tokenizer = subject.tokenizer if path is None else choose_tokenizer(path, None, subject.tokenizer)
    return data


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


def without_classes(subject: Subject, pairs: str) -> str:
    """What is said of pairs.

    Args:
        subject: What is to be measured.
        pairs: Which pairs.
    """
    module, column = ("LabelledDataModule", "text") if subject.is_text else ("ImageDataModule", "image")
    return (
        f"{pairs}, which have no classes: give labelled data by --config FILE, or by --data {module} --data.path ... "
        f"--data.{column}_column ... --data.label_column ..."
    )


def check_modality(subject: Subject, data: LightningDataModule, config: str | None) -> None:
    """Refuse pictures for a text encoder, texts for a picture encoder, documents, and texts that are too long."""
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
        most, length = subject.encoder.max_positions, required(text).maximum_length
        if length > most:
            raise UserError(
                f"{subject.name} reads {most} tokens at most, and data.maximum_length is {length}: give "
                f"--data.maximum_length {most}."
            )
