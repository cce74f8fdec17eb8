"""Encoders that are measured: of our checkpoints, of public weights, and with fresh weights to compare them with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.modules.starting_points import WEIGHT_SUFFIXES, StartingPoint, load_starting_point
from lit_pretrain.tracking.find import read_run_file, run_directory_of_checkpoint
from lit_pretrain.tracking.paths import RUN_FILE_NAME


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
        pair: Checkpoint of the two towers of which the encoder is one; null where there is one encoder.
        inputs: How large pictures (`stored_size`) or how long texts (`maximum_length`) are that the pair learned from.
    """

    name: str
    encoder: TextEncoder | VisionEncoder
    tokenizer: TextTokenizer | None = None
    step: int | None = None
    causal: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    config: Path | None = None
    fresh: bool = False
    pair: Path | None = None
    inputs: dict[str, int] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether it reads text, not pictures."""
        return isinstance(self.encoder, TextEncoder)

    @property
    def framed_size(self) -> int:
        """Pixels to which pictures are resized before their middle is looked at; 0 for texts."""
        return self.encoder.framed_size if isinstance(self.encoder, VisionEncoder) else 0


def load_subject(reference: str, architecture: str | None = None) -> Subject:
    """Find and load an encoder.

    Args:
        reference: As for `lit_pretrain.modules.starting_points.load_starting_point`; of two towers, that of pictures
            is taken where it does not say.
        architecture: timm's name for the ViT of a file of weights; read for such references only.

    Raises:
        UserError: If there is nothing of that name, it cannot be loaded, or it reads text and has no tokenizer.
    """
    is_file = Path(reference).suffix in WEIGHT_SUFFIXES and Path(reference).expanduser().is_file()
    start = load_starting_point(reference, "vision", architecture if is_file else None)
    if "init_from_module" not in start.lineage:
        # Nobody expects the heads of our own runs here.
        start.tell_left_out()
    lineage, source = start.lineage, Path(start.lineage["init_from"])
    if isinstance(start.encoder, TextEncoder) and start.tokenizer is None:
        raise UserError(f"{reference} brings no tokenizer, without which its encoder cannot be given any text.")
    objectives = [objective.rpartition(".")[2] for objective in lineage.get("init_from_objectives", "").split(" + ")]
    tags = {"checkpoint": str(source.resolve()) if source.exists() else str(source)}
    tags["tower"] = lineage.get("init_from_tower", "")
    tags |= {"module": lineage.get("init_from_module", ""), "objectives": " + ".join(objectives)}
    name, config = source.stem if source.is_file() else source.name, None
    directory = run_directory_of_checkpoint(source) if source.is_file() else None
    if directory is not None:
        run = read_run_file(directory / RUN_FILE_NAME)
        tags |= {"run_id": run.run_id, "run_name": run.run_name, "experiment": run.experiment}
        name = run.run_name
        config = directory / "config.yaml" if (directory / "config.yaml").is_file() else None
    return Subject(
        name,
        start.encoder.eval(),
        start.tokenizer,
        step=int(lineage["init_from_step"]) if "init_from_step" in lineage else None,
        causal=objectives == ["CausalLanguageModeling"],
        tags={f"source.{key}": value for key, value in tags.items() if value},
        config=config,
        pair=source if start.projection is not None else None,
        inputs=inputs_of(start) if start.projection is not None else {},
    )


def inputs_of(start: StartingPoint) -> dict[str, int]:
    """`Subject.inputs` of one of two towers: as our checkpoint says, else what a public encoder has positions for."""
    if "init_from_tower" in start.lineage:
        return read_checkpoint(start.lineage["init_from"])["lit_pretrain"].get("inputs", {})
    if isinstance(start.encoder, TextEncoder):
        return {"maximum_length": start.encoder.max_positions}
    return {"stored_size": start.encoder.framed_size}


def fresh_subject(subject: Subject, seed: int) -> Subject:
    """The same encoder with fresh weights, which tells what the architecture alone gives.

    Args:
        subject: Whose shape, tokenizer and normalisation it has.
        seed: Source of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = type(subject.encoder).from_settings(subject.encoder.settings())
    return replace(subject, name="fresh weights", encoder=encoder.eval(), step=None, fresh=True, pair=None)


def of_each_shape(subjects: Sequence[Subject]) -> list[tuple[int, Subject]]:
    """The first subject of every shape, with its place: one fresh encoder is enough to compare all of them with."""
    subjects_by_shape: dict[str, tuple[int, Subject]] = {}
    for place, subject in enumerate(subjects):
        subjects_by_shape.setdefault(str(subject.encoder.settings()), (place, subject))
    return list(subjects_by_shape.values())
