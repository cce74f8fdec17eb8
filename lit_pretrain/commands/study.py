"""Run a study: many trainings planned by one file, resumable, told as one table, figure and MLflow run."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_pretrain.commands.benchmark import positive
from lit_pretrain.commands.engine import add_engine_arguments, check_engine, engine
from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import shown_path

KINDS = {
    "label-efficiency": "fine-tune encoders with fewer and fewer labels: accuracy, time to a target, labels saved",
    "scaling": "widths, depths and data sizes under one budget: the loss and a power law through it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parts = parser.add_subparsers(dest="what", required=True, metavar="{label-efficiency,scaling}")
    for name, text in KINDS.items():
        part = parts.add_parser(name, help=text, description=text.capitalize() + ".")
        part.add_argument("--config", required=True, metavar="FILE", help="the study (see configs/studies/)")
        part.add_argument("--jobs", type=positive, help="trainings at a time, sharing this machine's processors (1)")
        add_engine_arguments(part)
        part.add_argument(
            "--dry-run",
            action="store_true",
            help="only check the file, by one step of training, and list the cells and what is left to do",
        )
        part.add_argument("--report", action="store_true", help="only tell again what is finished")
        part.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Do the study and tell it.

    Returns:
        0 if every cell finished, else 1.
    """
    check_engine(arguments)
    if arguments.json:
        check_writable(Path(arguments.json))
    from rich.console import Console

    # In a file there is no edge to fold tables at.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    if arguments.dry_run or arguments.report:
        return run_on(None, arguments, console, say)
    with engine(arguments, say) as found:
        return run_on(found, arguments, console, say)


def run_on(found: Any | None, arguments: argparse.Namespace, console: Any, say: Callable[[str], None]) -> int:
    """As `run`, on an engine; without one nothing is trained."""
    from lit_pretrain.studies.cells import CellStore
    from lit_pretrain.studies.processes import Machine
    from lit_pretrain.studies.record import StudyRecord
    from lit_pretrain.studies.scheduler import Runner, rehearsed

    study, reporter = prepare(arguments)
    settings = study.settings
    if found is not None:
        for name, (config, _) in study.prepared.items():
            found.check(str(name), config)

    def rehearse(record: Any) -> None:
        store = CellStore(record.place, settings.metric)
        # The metric is that of all cells: without a study the first tells whether it is logged.
        for cell in study.rehearsals() if found is not None else study.rehearsals()[:1]:
            rehearsed(settings, store, cell, say, found or Machine(1))

    record = StudyRecord(settings.name, settings.experiment, arguments.what, found is not None, before=rehearse)
    if arguments.dry_run:
        rehearse(record)
        list_cells(study, reporter, record, arguments.jobs or 1, console)
        return 0
    if record.directory is None:
        raise UserError(f"No study {settings.name} was started here: leave --report out to start it.")
    with ended(record) if found is not None else contextlib.nullcontext():
        if found is not None:
            record.log_file(Path(arguments.config))
            study.run(Runner(settings, record, found, say))
        complete = tell(study, reporter, record, arguments, console)
    return 0 if complete else 1


def prepare(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The study, with all configs resolved, and the module that tells of it."""
    from lit_pretrain.studies.settings import LabelEfficiencySettings, ScalingSettings, read_settings

    if arguments.what == "scaling":
        from lit_pretrain.studies import scaling_report
        from lit_pretrain.studies.scaling import Scaling

        return Scaling(read_settings(arguments.config, ScalingSettings)), scaling_report
    from lit_pretrain.studies import label_efficiency_report
    from lit_pretrain.studies.label_efficiency import LabelEfficiency

    return LabelEfficiency(read_settings(arguments.config, LabelEfficiencySettings)), label_efficiency_report


def list_cells(study: Any, reporter: Any, record: Any, jobs: int, console: Any) -> None:
    """Print the cells, and how long what is left will take."""
    from lit_pretrain.studies.cells import CellStore
    from lit_pretrain.studies.scheduler import duration, estimate
    from lit_pretrain.studies.tables import plan_table

    store = CellStore(record.place, study.settings.metric)
    cells, later = reporter.planned(study, store)
    if cells:
        console.print(plan_table(cells, store))
    remaining, seconds = estimate(cells, store)
    cost = "nothing has finished that would tell how long that takes"
    if seconds is not None:
        shared = f", {jobs} at a time sharing the processors" if jobs > 1 else ""
        cost = f"about {duration(seconds)}{shared}"
    console.print(f"{remaining} of {len(cells)} cells are left{f', and {later}' if later else ''}; {cost}.")


def tell(study: Any, reporter: Any, record: Any, arguments: argparse.Namespace, console: Any) -> bool:
    """Write and print what has come of it, and log it with the study's run.

    Returns:
        Whether all cells have finished.
    """
    from lit_pretrain.studies.cells import CellStore
    from lit_pretrain.studies.tables import unfinished

    store = CellStore(record.directory, study.settings.metric)
    report = reporter.report(study, store, record.directory)
    for table in report.tables:
        console.print(table)
    lines = unfinished(report.cells)
    for line in [*report.notes, *lines]:
        console.print(line, soft_wrap=True, markup=False)
    for path in report.files:
        record.log_file(path)
    for name, points in report.curves.items():
        record.log_curve(name, points)
    describe(study, record, report, arguments.config)
    if arguments.json:
        write_json(arguments.json, report.rows)
    console.print(
        f"The files are in {shown_path(record.directory)} and in MLflow: python -m lit_pretrain ui", soft_wrap=True
    )
    return all(outcome is not None and outcome.status == "finished" for _, outcome in report.cells)


def describe(study: Any, record: Any, report: Any, file: str) -> None:
    """Describe the study on its run's page in MLflow."""
    from lit_pretrain.studies.description import study_commands, study_description

    metric = study.settings.metric
    trainings: list[tuple[str, str, float | None]] = []
    labels: dict[str, None] = {}
    for cell, outcome in report.cells:
        figure = outcome.metrics.get(metric) if outcome is not None else None
        trainings.append((cell.name, outcome.status if outcome is not None else "waiting", figure))
        labels |= {label: None for label, value in cell.labels.items() if value is not None}
    commands = study_commands(f"study {record.kind} --config {shlex.quote(file)}", shlex.quote(record.experiment))
    text = study_description(record.kind, metric, trainings, report.notes, commands)
    record.describe(text, [metric], list(labels))


@contextlib.contextmanager
def ended(record: Any) -> Iterator[None]:
    """End the study's run as it ended."""
    try:
        yield
    except KeyboardInterrupt:
        record.end("KILLED")
        raise
    except BaseException:
        record.end("FAILED")
        raise
    record.end("FINISHED")
