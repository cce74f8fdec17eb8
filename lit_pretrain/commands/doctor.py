"""Check this machine: versions, devices, database, a second of training; its accelerator; or a config's gradients."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_pretrain.errors import UserError

# A title, what is said if all is well, and what if it is not.
MACHINE = (
    "This machine",
    "All is well: python -m lit_pretrain fit --config configs/quickstart.yaml",
    "a training will not work before they are mended.",
)
GRADIENTS = (
    "This training",
    "All is well: loss and gradients are those of one process with the whole batch.",
    "what would be trained is not what one process with the whole batch trains.",
)
DEVICE = (
    "This device",
    "All is well: every objective, module and precision computes what the CPU does.",
    "trainings on this device will not be right before they are mended.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")
    parser.add_argument(
        "--gradients",
        nargs=argparse.REMAINDER,
        metavar="--config",
        help="check a config of contrastive pretraining instead: is a step in its processes, chunks and precision that "
        "of one process with the whole batch? What follows is as for fit",
    )
    parser.add_argument(
        "--device",
        action="store_true",
        help="check the accelerator instead, or the CPU if there is none: every objective, module and precision for "
        "two steps, losses beside the CPU's, checkpoints, export, compilation, speed; two minutes at most",
    )
    parser.add_argument("--pairs", type=int, metavar="N", help="size of that batch (the config's, at most 256)")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 if something must be mended before a training."""
    from lit_pretrain.commands.checks import FAIL, WARN, all_checks
    from lit_pretrain.commands.output import check_writable, write_json

    if arguments.pairs is not None and arguments.gradients is None:
        raise UserError("--pairs is for --gradients: add --gradients --config FILE, or leave it out.")
    if arguments.device and arguments.gradients is not None:
        raise UserError("--device checks a machine and --gradients a config: give one of the two.")
    training = None if arguments.gradients is None else with_own_options(arguments)
    if arguments.json:
        check_writable(Path(arguments.json))
    if training is not None:
        from lit_pretrain.commands.gradient_check import run as check_gradients

        rows, reports = check_gradients(training, arguments.pairs)
        title, good, bad = GRADIENTS
    elif arguments.device:
        from lit_pretrain.commands.device_check import run as check_device

        rows, reports = check_device(), True
        title, good, bad = DEVICE
    else:
        rows, reports = [row for check in all_checks(arguments.runs) for row in check()], True
        title, good, bad = MACHINE
    failed = sum(row.status == FAIL for row in rows)
    if not reports:
        # Another process of this training tells it.
        return 1 if failed else 0
    show(rows, title)
    if failed:
        print(f"{failed} of {len(rows)} checks failed: {bad}")
    elif any(row.status == WARN for row in rows):
        print("Trainings will work; the warnings say what could be better.")
    else:
        print(good)
    if arguments.json:
        write_json(arguments.json, [row.as_dictionary() for row in rows])
    return 1 if failed else 0


def with_own_options(arguments: argparse.Namespace) -> list[str]:
    """Take this command's options out of those that follow `--gradients`; what is left is `fit`'s."""
    from lit_pretrain.argument_parser import ArgumentParser

    parser = ArgumentParser(prog="python -m lit_pretrain doctor", add_help=False, allow_abbrev=False)
    parser.add_argument("--json", default=arguments.json)
    parser.add_argument(
        "--device",
        action="store_true",
        help="check the accelerator instead, or the CPU if there is none: every objective, module and precision for "
        "two steps, losses beside the CPU's, checkpoints, export, compilation, speed; two minutes at most",
    )
    parser.add_argument("--pairs", type=int, default=arguments.pairs)
    own, others = parser.parse_known_args(arguments.gradients)
    arguments.json, arguments.pairs = own.json, own.pairs
    return others


def show(rows: list, title: str) -> None:
    """A table: what was checked, how it went, what was found, what to do."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    if any(row.advice for row in rows):
        table.add_column("what to do", overflow="fold")
    for row in rows:
        cells = [Text(row.check), Text(row.status, style=colors[row.status]), Text(row.found)]
        if len(table.columns) == 4:
            cells.append(Text(row.advice))
        table.add_row(*cells)
    Console().print(table)
