"""Put runs side by side: figures that can be compared, the settings that differ, where they come from, their cost."""

import argparse
from pathlib import Path
from typing import Any

from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.tracking.paths import shown_path, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument(
        "run_names",
        nargs="*",
        metavar="RUN",
        help="runs by name, id, directory, or last (default: the 10 latest trainings, or those that the options say)",
    )
    parser.add_argument(
        "--experiment", action="append", metavar="E", help="only runs of this experiment; may be repeated"
    )
    parser.add_argument("--metric", metavar="M", help="figure to rank by (default: what best checkpoints are kept for)")
    parser.add_argument("--last", type=int, metavar="N", help="only the N latest")
    parser.add_argument(
        "--where", metavar="FILTER", help="only runs that meet this, in MLflow's filter syntax (docs/tracking.md)"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything to this file too")
    parser.add_argument("--html", metavar="FILE", help="write a page with curves, differences and figures")
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")


def run(arguments: argparse.Namespace) -> int:
    """Compare.

    Raises:
        UserError: If a run is not there, or nothing can be compared.
    """
    for option in ("json", "html"):
        if getattr(arguments, option):
            check_writable(Path(getattr(arguments, option)), f"--{option}")
    from lit_pretrain.comparison.groups import compare
    from lit_pretrain.comparison.selection import select
    from lit_pretrain.comparison.table import json_of

    experiments = arguments.experiment or ()
    store, runs = select(arguments.run_names, arguments.runs, experiments, arguments.last, arguments.where)
    comparison = compare(runs, store, arguments.metric)
    show(comparison)
    if arguments.json:
        write_json(arguments.json, json_of(comparison))
    if arguments.html:
        from lit_pretrain.comparison.comparison_page import page_of

        write_atomically(Path(arguments.html).resolve(), page_of(comparison))
        print(f"The page is {shown_path(arguments.html)}")
    return 0


def show(comparison: Any) -> None:
    """Print the groups, each with its protocol and its tables."""
    from rich.console import Console

    from lit_pretrain.comparison.protocol import protocol_words
    from lit_pretrain.comparison.table import beside_table, least_width, notes_of, settings_tables, table_of

    console = Console(highlight=False)

    def show_table(table: Any) -> None:
        if least_width(table, console) > console.width:
            table.padding = 0
        # Lines that a narrow terminal wraps lose nothing.
        terminal, console.width = console.width, max(console.width, least_width(table, console))
        console.print(table)
        console.width = terminal

    for place, group in enumerate(comparison.groups):
        if place:
            console.print(f"\nNot ranked with the first: {group.why}.", markup=False)
        console.print(f"{protocol_words(group.protocol)}", markup=False, style="bold")
        show_table(table_of(group))
        for table in [*settings_tables(group), beside_table(group)]:
            if table is not None:
                console.print()
                show_table(table)
        for note in notes_of(group):
            console.print(note, markup=False, style="dim")
    if comparison.without:
        names = ", ".join(f"{subject.run.name} ({subject.run.status.lower()})" for subject in comparison.without)
        console.print(f"\nWithout such a figure: {names}.", markup=False)
