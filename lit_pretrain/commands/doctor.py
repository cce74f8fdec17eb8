"""Check this machine: versions, devices, directories, database, a second of training."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 if something must be mended before a training."""
    from lit_pretrain.commands.checks import FAIL, WARN, all_checks
    from lit_pretrain.commands.output import check_writable, write_json

    if arguments.json:
        check_writable(Path(arguments.json))
    rows = []
    for check in all_checks(arguments.runs):
        rows += check()
    show(rows)
    failed = sum(row.status == FAIL for row in rows)
    if failed:
        print(f"{failed} of {len(rows)} checks failed: a training will not work before they are mended.")
    elif any(row.status == WARN for row in rows):
        print("Trainings will work; the warnings say what could be better.")
    else:
        print("All is well: python -m lit_pretrain fit --config configs/quickstart.yaml")
    if arguments.json:
        write_json(arguments.json, [row.as_dictionary() for row in rows])
    return 1 if failed else 0


def show(rows: list) -> None:
    """A table: what was checked, how it went, what was found, what to do."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, title="This machine", title_justify="left")
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
