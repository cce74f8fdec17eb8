"""Write the page of a run: settings, data, lineage, curves, speed, pictures, reports, faults, next commands."""

import argparse
from pathlib import Path

from lit_pretrain.commands.output import check_writable
from lit_pretrain.tracking.paths import resolve_runs_directory, shown_path, write_atomically

PAGE_NAME = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument("run_name", metavar="RUN", help="run by name, id, directory, or last")
    parser.add_argument(
        "--output", metavar="FILE", help=f"where the page goes (default: {PAGE_NAME} in the run's directory)"
    )
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is.

    Raises:
        UserError: If the run is not there, or the page cannot be written.
    """
    if arguments.output:
        check_writable(Path(arguments.output), "--output")
    from lit_pretrain.comparison.run_page import run_page
    from lit_pretrain.comparison.selection import select
    from lit_pretrain.tracking.find import list_runs

    directory = resolve_runs_directory(arguments.runs)
    store, (found,) = select([arguments.run_name], directory)
    records = list_runs(directory)
    if arguments.output:
        path = Path(arguments.output)
    else:
        # A run of another machine has no directory here.
        own = (record.directory for record in records if record.run_id == found.run_id)
        path = next(own, Path.cwd()) / PAGE_NAME
        check_writable(path, "--output")
    write_atomically(path.resolve(), run_page(found, store, records))
    print(f"The page of {found.name} is {shown_path(path)}")
    return 0
