"""An export from beginning to end: written beside its place, checked, described, and only then put there."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.commands.exports import onnx_format, open_clip_format, timm_format, transformers_format
from lit_pretrain.commands.exports.card import MARK, write_card
from lit_pretrain.commands.exports.check import Difference, judge, require
from lit_pretrain.commands.exports.provenance import find_out
from lit_pretrain.commands.exports.subject import Subject
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import shown_path

FORMATS = {"hf": transformers_format, "timm": timm_format, "open_clip": open_clip_format, "onnx": onnx_format}
# What each holds.
KINDS = {"hf": "text", "timm": "pictures", "open_clip": "two towers"}
CARD_NAME = "README.md"


@dataclass(frozen=True)
class Export:
    """What was made.

    Attributes:
        architecture: The class that loads it.
        library: What checked it, with its version.
        differences: Of each output, the largest.
        sentence: How far apart the outputs were.
        notes: What a reader must know of it.
    """

    architecture: str
    library: str
    differences: list[Difference]
    sentence: str
    notes: tuple[str, ...]


def make_export(reference: str, target: Path, format_name: str | None = None, overwrite: bool = False) -> Export:
    """Export a checkpoint.

    Args:
        reference: "last", a run's name or id, or a file; "...:text" or "...:vision" for one of two towers.
        target: The directory to make.
        format_name: hf, timm, open_clip or onnx; null takes hf for text, timm for pictures, open_clip for two towers.
        overwrite: Whether an export that lies there is replaced.

    Raises:
        UserError: If the target is taken, the checkpoint cannot be had, or the format has no place for it.
        ExportMismatchError: If what was written does not compute the same.
    """
    target = target.expanduser().absolute()
    check_target(target, overwrite)
    subject = Subject.open(reference)
    format_name = format_name or next(name for name, kind in KINDS.items() if kind == kind_of(subject))
    check_kind(subject, format_name)
    form = FORMATS[format_name]
    require(form.PACKAGES, format_name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that it can be moved there in one step.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(f"{shown_path(target)} cannot be written ({error.strerror}): give another --to.") from error
    try:
        built = partial / target.name
        form.write(subject, built)
        differences = form.check(subject, built)
        sentence = judge(differences, form.library())
        loading = form.loading(subject)
        card = write_card(subject, format_name, loading, find_out(subject), differences, sentence)
        (built / CARD_NAME).write_text(card, encoding="utf-8")
        make_readable(built)
        put(built, target, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Export(loading.architecture, form.library(), differences, sentence, loading.notes)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a place that is taken, before anything slow.

    Raises:
        UserError: If something lies there that may not be replaced.
    """
    if target.is_dir() and not any(target.iterdir()) or not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{shown_path(target)} is a file: give --to a directory.")
    if not overwrite:
        raise UserError(f"{shown_path(target)} is not empty: give another --to, or --overwrite to replace an export.")
    if not is_export(target):
        raise UserError(
            f"{shown_path(target)} holds something else than an export, which --overwrite does not remove: give "
            "another --to."
        )


def is_export(directory: Path) -> bool:
    """Whether a directory was written by this command, by its card's front matter."""
    card = directory / CARD_NAME
    return card.is_file() and f"- {MARK}\n" in card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]


def kind_of(subject: Subject) -> str:
    """What a subject is, as in `KINDS`."""
    if subject.is_pair:
        return "two towers"
    return "text" if subject.is_text else "pictures"


def check_kind(subject: Subject, format_name: str) -> None:
    """Refuse pictures for transformers' BERT, text for timm's ViT, and so on."""
    kind = kind_of(subject)
    if KINDS.get(format_name, kind) == kind:
        return
    fitting = next(name for name, held in KINDS.items() if held == kind)
    content = "two towers" if subject.is_pair else f"an encoder of {kind}"
    more = ", or name one tower (RUN:text, RUN:vision)" if subject.is_pair else ""
    raise UserError(
        f"{shown_path(subject.path)} is {content}, which --format {format_name} does not hold: take {fitting} or "
        f"onnx{more}."
    )


def make_readable(directory: Path) -> None:
    """Give every file the permissions that the umask says: safetensors makes its own for one user only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def put(built: Path, target: Path, partial: Path) -> None:
    """Move a finished directory to its place; what was there goes only then."""
    before = partial / "before"
    if target.exists():
        target.replace(before)
    try:
        built.replace(target)
    except OSError:
        if before.exists():
            before.replace(target)
        raise
