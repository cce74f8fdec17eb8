"""Encoders that are measured: of our checkpoints, of public weights, and with fresh weights to compare them with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import load_encoder, read_checkpoint
from lit_pretrain.tracking.find import find_checkpoint, read_run_file, run_directory_of_checkpoint
from lit_pretrain.tracking.paths import RUN_FILE_NAME, shown_path

KINDS = {kind.__name__: kind for kind in (TextEncoder, VisionEncoder)}
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class Subject:
    """An encoder with what a table says of it.

    Attributes:
        name: What a person knows it by: the run, the directory, or timm's name.
        encoder: In evaluation mode.
        tokenizer: Of a text encoder.
        step: Optimiser step of the checkpoint; null for public weights and fresh ones.
        causal: Whether it was pretrained by causal language modelling alone, and so must be read causally.
        tags: Where it comes from, for MLflow.
        config: config.yaml of its run, if there is one.
        fresh: Whether the weights are fresh ones.
    """

    name: str
    encoder: TextEncoder | VisionEncoder
    tokenizer: WordPieceTokenizer | None = None
    step: int | None = None
    causal: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    config: Path | None = None
    fresh: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it reads text, not pictures."""
        return isinstance(self.encoder, TextEncoder)


def load_subject(reference: str) -> Subject:
    """Find and load an encoder.

    Args:
        reference: "last", a run's name or id, a checkpoint of ours; a directory in Hugging Face's BERT format or in
            timm's; a file of timm's weights; or a model name of timm's.

    Raises:
        UserError: If there is nothing of that name, or it cannot be loaded.
    """
    path = Path(reference).expanduser()
    if path.is_dir() and not (path / RUN_FILE_NAME).is_file():
        return load_public_directory(path)
    if path.is_file() and path.suffix in WEIGHTS:
        return Subject(path.stem, VisionEncoder.from_pretrained(path), tags={"source.checkpoint": str(path.resolve())})
    try:
        checkpoint = find_checkpoint(reference)
    except UserError:
        if not is_name_of_timm(reference):
            raise
        return Subject(reference, VisionEncoder.from_pretrained(reference), tags={"source.checkpoint": reference})
    return load_checkpoint(checkpoint)


def load_checkpoint(path: Path) -> Subject:
    """The encoder of a checkpoint of ours, with its tokenizer if it reads text."""
    content = read_checkpoint(path)
    record = content["lit_pretrain"]
    kind = KINDS.get(record["encoder_class"])
    if kind is None:
        raise UserError(
            f"{shown_path(path)} holds a {record['encoder_class']}, of which single features cannot be taken: give a "
            f"checkpoint of a {' or '.join(KINDS)}."
        )
    encoder, _ = load_encoder(str(path), kind)
    objectives = [one["class_path"].rpartition(".")[2] for one in record.get("objectives", [])]
    tags = {"source.checkpoint": str(path), "source.module": record["module"]}
    tags |= {"source.objectives": " + ".join(objectives)} if objectives else {}
    directory, name, config = run_directory_of_checkpoint(path), path.stem, None
    if directory is not None:
        run = read_run_file(directory / RUN_FILE_NAME)
        tags |= {"source.run_id": run.run_id, "source.run_name": run.run_name, "source.experiment": run.experiment}
        name = run.run_name
        config = directory / "config.yaml" if (directory / "config.yaml").is_file() else None
    tokenizer = WordPieceTokenizer.from_json(record["tokenizer"]) if "tokenizer" in record else None
    if kind is TextEncoder and tokenizer is None:
        raise UserError(f"{shown_path(path)} carries no tokenizer, without which text cannot be given to its encoder.")
    causal = objectives == ["CausalLanguageModeling"]
    return Subject(name, encoder.eval(), tokenizer, int(content["global_step"]), causal, tags, config)


def load_public_directory(path: Path) -> Subject:
    """The encoder of a directory in Hugging Face's BERT format, which has a vocabulary, or in timm's."""
    tags = {"source.checkpoint": str(path.resolve())}
    if (path / "vocab.txt").is_file() or (path / "tokenizer.json").is_file():
        return Subject(path.name, TextEncoder.from_pretrained(path), WordPieceTokenizer.load(path), tags=tags)
    return Subject(path.name, VisionEncoder.from_pretrained(path), tags=tags)


def is_name_of_timm(name: str) -> bool:
    """Whether timm has a model of this name; null checkpoints are not asked for."""
    if "/" in name or "\\" in name:
        return False
    from timm.models import is_model

    return is_model(name.partition(".")[0])


def fresh_subject(subject: Subject, seed: int) -> Subject:
    """The same encoder with fresh weights, which tells what the architecture alone gives.

    Args:
        subject: Whose shape, tokenizer and normalisation it has.
        seed: Source of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = type(subject.encoder).from_settings(subject.encoder.settings())
    return replace(subject, name="fresh weights", encoder=encoder.eval(), step=None, fresh=True)


def of_each_shape(subjects: Sequence[Subject]) -> list[tuple[int, Subject]]:
    """The first subject of every shape, with its place: one fresh encoder is enough to compare all of them with."""
    found: dict[str, tuple[int, Subject]] = {}
    for place, subject in enumerate(subjects):
        found.setdefault(str(subject.encoder.settings()), (place, subject))
    return list(found.values())
