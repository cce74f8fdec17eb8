"""Export a checkpoint: text for transformers, pictures for timm, both for open_clip, all as ONNX, checked there."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_pretrain.commands.exports.check import Difference

FORMATS = ("hf", "timm", "open_clip", "onnx")
EPILOG = """The export is loaded again in the other library and given the same seeded inputs; how far apart the outputs
were stands in the last line and in the model card (README.md) beside the weights. Outputs that differ by more than
rounding explains are an error, and nothing is left in DIR. What the other formats have no place for, onnx has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="CKPT",
        help="last, a run's name or id, or a checkpoint's path; with :text or :vision for one of two towers",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="the directory to write; new or empty")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="hf: text for transformers (default for text); timm: pictures for timm (default for pictures); open_clip: "
        "both towers of a contrastive pretraining (default for these); onnx: any, for onnxruntime (pip install "
        "'lit_pretrain[export]')",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument("--json", metavar="FILE", help="write the check's rows as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Write the export, check it, and say how far apart the outputs were."""
    import sys

    from lit_pretrain.commands.exports.check import ExportMismatchError
    from lit_pretrain.commands.exports.export_directory import make_export
    from lit_pretrain.commands.output import check_writable, write_json
    from lit_pretrain.quiet import quieten

    if arguments.json:
        check_writable(Path(arguments.json))
    quieten()
    try:
        export = make_export(arguments.ckpt, Path(arguments.to), arguments.format, arguments.overwrite)
    except ExportMismatchError as error:
        # The program's fault, not the person's.
        print(f"lit_pretrain: {error}", file=sys.stderr)
        return 1
    show(export.differences, export.library)
    for note in export.notes:
        print(note)
    print(f"Wrote {arguments.to} ({export.architecture}). {export.sentence}")
    if arguments.json:
        rows = [{"library": export.library, **difference.as_dictionary()} for difference in export.differences]
        write_json(arguments.json, rows)
    return 0


def show(differences: "list[Difference]", library: str) -> None:
    """A table: each output, how far apart, and how far it might have been."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"The checkpoint beside {library}", title_justify="left")
    table.add_column("output", no_wrap=True)
    for name in ("largest difference", "tolerance", "largest value"):
        table.add_column(name, justify="right")
    for difference in differences:
        table.add_row(
            difference.output,
            f"{difference.difference:.1e}",
            f"{difference.tolerance:.0e}",
            f"{difference.largest:.3g}",
        )
    Console().print(table)
