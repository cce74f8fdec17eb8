"""Search for the best settings of a training: trials proposed by Optuna, resumable, by any number of processes."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pretrain.commands.benchmark import positive
from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import shown_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument("--config", required=True, metavar="FILE", help="the sweep (see configs/sweeps/)")
    parser.add_argument("--jobs", type=positive, default=1, help="trials at a time, sharing the processors (1)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only check the file, by one step of training, and list what would be varied",
    )
    parser.add_argument("--report", action="store_true", help="only tell again what has come of it")
    parser.add_argument("--json", metavar="FILE", help="write the trials as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Do the sweep and tell it.

    Returns:
        0 if a trial finished, else 1.
    """
    if arguments.json:
        check_writable(Path(arguments.json))
    from rich.console import Console

    from lit_pretrain.studies.cells import CellStore
    from lit_pretrain.studies.processes import Machine
    from lit_pretrain.studies.record import StudyRecord
    from lit_pretrain.studies.scheduler import rehearsed
    from lit_pretrain.studies.settings import read_settings
    from lit_pretrain.studies.sweep import Sweep
    from lit_pretrain.studies.sweep_runner import SweepRunner
    from lit_pretrain.studies.sweep_settings import SweepSettings

    # In a file there is no edge to fold tables at.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    settings = read_settings(arguments.config, SweepSettings)
    sweep = Sweep(settings, arguments.config)
    record = StudyRecord(settings.name, settings.experiment, "sweep", begin=False)
    done = check_store(sweep, record)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    begin = not arguments.report
    if begin:
        # Before its run begins, so that a mistake leaves none behind; other processes may do the same.
        rehearsed(settings, CellStore(record.place, settings.metric), sweep.base_cell(), say, Machine(1))
    if arguments.dry_run:
        list_parameters(sweep, done, console)
        return 0
    if begin:
        record = StudyRecord(settings.name, settings.experiment, "sweep", shared=True)
    elif record.directory is None:
        raise UserError(f"No sweep {settings.name} was started here: leave --report out to start it.")
    runner = SweepRunner(sweep, record, arguments.jobs, say)
    with ended(record, runner) if begin else contextlib.nullcontext():
        if begin:
            record.log_file(Path(arguments.config))
            runner.run_trials()
        return 0 if tell(sweep, runner, record, arguments, console) else 1


def check_store(sweep: Any, record: Any) -> int:
    """See that an earlier start was of the same sweep; how many trials have ended there."""
    from lit_pretrain.studies.trials import STORE_NAME, find_study

    if record.directory is None or not (record.directory / STORE_NAME).is_file():
        return 0
    study = find_study(record.directory, sweep.settings, sweep.identity)
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)) if study is not None else 0


def list_parameters(sweep: Any, done: int, console: Any) -> None:
    """Print what is varied, and how many trials are left."""
    from lit_pretrain.studies.sweep_settings import shown
    from lit_pretrain.studies.sweep_space import value_at
    from lit_pretrain.studies.tables import table

    lines = []
    for one in sweep.parameters:
        kind = "choices" if one.values.choices else "whole numbers" if one.whole else "numbers"
        kind += ", by logarithm" if one.values.log else f", step {one.values.step:g}" if one.values.step else ""
        values = ", ".join(map(shown, one.values.choices)) or f"{one.values.low:g} to {one.values.high:g}"
        lines.append([one.key, values, kind, shown(value_at(sweep.prepared[0], one.path))])
    headings = [("setting", "left"), ("values", "left"), ("kind", "left"), ("in the config", "left")]
    console.print(table(f"{sweep.settings.name}: {sweep.settings.metric}", headings, lines))
    limit = sweep.settings.trials
    left = f"{max(0, limit - done)} of {limit} trials are left" if limit is not None else f"{done} trials have ended"
    timeout = f"; a start of it begins none after {sweep.settings.timeout}" if sweep.settings.timeout else ""
    console.print(f"{left}{timeout}.")


def tell(sweep: Any, runner: Any, record: Any, arguments: argparse.Namespace, console: Any) -> bool:
    """Write and print what has come of it, and log it with the sweep's run.

    Returns:
        Whether a trial has finished.
    """
    from lit_pretrain.studies.sweep_report import report

    trials = runner.study.get_trials(deepcopy=False)
    told = report(sweep, trials, runner.study, runner.directory)
    for table in told.tables:
        console.print(table)
    for line in told.notes:
        console.print(line, soft_wrap=True, markup=False)
    for path in told.files:
        record.log_file(path)
    for name, points in told.curves.items():
        if points:
            record.log_curve(name, points)
    describe(sweep, record, trials, told.notes, arguments.config)
    if arguments.json:
        write_json(arguments.json, told.rows)
    console.print(
        f"The files are in {shown_path(runner.directory)} and in MLflow: python -m lit_pretrain ui", soft_wrap=True
    )
    return bool(told.tables)


def describe(sweep: Any, record: Any, trials: Any, notes: list[str], file: str) -> None:
    """Describe the sweep on its run's page in MLflow."""
    from lit_pretrain.studies.description import study_commands, study_description
    from lit_pretrain.studies.sweep_report import WORDS

    metric = sweep.settings.metric
    cells = [(sweep.cell(trial.number, trial.params), trial) for trial in trials if sweep.is_whole(trial)]
    trainings = [
        (cell.name, WORDS[trial.state.name], trial.value if trial.state.name == "COMPLETE" else None)
        for cell, trial in cells
    ]
    labels = dict.fromkeys(label for cell, _ in cells for label in cell.labels)
    commands = study_commands(f"sweep --config {shlex.quote(file)}", shlex.quote(record.experiment))
    record.describe(study_description("sweep", metric, trainings, notes, commands), [metric], list(labels))


@contextlib.contextmanager
def ended(record: Any, runner: Any) -> Iterator[None]:
    """End the sweep's run as it ended, unless other processes go on with it."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if runner.others_at_work() == 0:
            record.end(status)
