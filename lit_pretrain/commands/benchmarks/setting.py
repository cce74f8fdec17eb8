"""Where a benchmark runs: device, precision, the machine's peak, and the place that its tables go to."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from lit_pretrain.callbacks.peak import measured_peak
from lit_pretrain.commands.benchmarks.tables import Row
from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.precision import resolve_precision
from lit_pretrain.quiet import quieten

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


Shape = TypeVar("Shape")


def shape_of(text: str, kind: Callable[..., Shape], shapes: Mapping[str, Shape], form: str, example: str) -> Shape:
    """A model's shape by its name, or by its figures.

    Args:
        text: As given, "small" or "224/16/192/12".
        kind: Made of the text and its figures.
        shapes: Those that have names.
        form: What the figures are, "IMAGE/PATCH/WIDTH/DEPTH".
        example: Of them.

    Raises:
        UserError: If it is neither.
    """
    if text in shapes:
        return shapes[text]
    figures = text.split("/")
    if len(figures) != len(form.split("/")) or not all(figure.isdecimal() for figure in figures):
        raise UserError(
            f"There is no shape '{text}'{nearest(text, shapes)}: give some of {', '.join(shapes)}, or {form} such as "
            f"{example}."
        )
    return kind(text, *(int(figure) for figure in figures))


@dataclass(frozen=True)
class Setting:
    """Settings that all measurements of one run share.

    Attributes:
        console: For tables and remarks.
        device: The accelerator, or the processor if there is none.
        precision: Lightning's name of it.
        peak: Operations a second of large matrix products in this precision, as measured here.
        json: File for the rows, or null.
    """

    console: Console
    device: torch.device
    precision: str
    peak: float
    json: Path | None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Setting":
        """What the arguments ask for; a `UserError` if the rows cannot be written."""
        if arguments.json:
            check_writable(Path(arguments.json))
        quieten()
        console = Console()
        # The tables are not broken up in a narrow window.
        console.width = max(console.width, 120)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = str(resolve_precision(arguments.precision))
        peak = measured_peak(device.type, PRECISIONS[precision])
        return cls(console, device, precision, peak, Path(arguments.json) if arguments.json else None)

    @property
    def dtype(self) -> torch.dtype:
        """The precision's type of number in matrix products."""
        return PRECISIONS[self.precision]

    def write(self, rows: Sequence[Row]) -> None:
        """Write the rows if a file was named."""
        if self.json is not None:
            write_json(self.json, rows)
