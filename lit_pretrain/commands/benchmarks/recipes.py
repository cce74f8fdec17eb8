"""Minutes that a training takes to another build's final validation figure, both run in turns on this machine.

A build is a checkout of this project. Each trains in processes of its own that import nothing of the other, into runs
of its own; curves and times are read from their MLflow databases. The clock starts with the run, after the data is
prepared, and validations count. Between two validations the figure is taken to change evenly with time.
"""

import argparse
import contextlib
import itertools
import os
import shlex
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import lit_pretrain
from lit_pretrain.commands.benchmarks.tables import Column, Row, table_of
from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.precision import resolve_precision
from lit_pretrain.tracking.best import direction
from lit_pretrain.tracking.paths import DATABASE_NAME

# Where a run says by what its checkpoints are compared, "validation/loss = 4.12".
MONITOR_TAG = "checkpoint.best_score"
COLUMNS = (
    Column("to reach", "target", "{:.4g}"),
    Column("old, min", "old_minutes", "{:.2f}"),
    Column("new, min", "new_minutes", "{:.2f}"),
    Column("new / old", "ratio", "{:.2f}"),
    Column("new at its end", "new_final", "{:.4g}"),
    Column("after min", "new_final_minutes", "{:.2f}"),
)


@dataclass(frozen=True)
class Build:
    """A side of the comparison.

    Attributes:
        name: `new` for this build, `old` for the other.
        root: Its checkout.
        arguments: That it alone is given after `fit`.
        runs: Its runs directory.
    """

    name: str
    root: Path
    arguments: list[str]
    runs: Path

    def fit(self, configs: list[str], seed: int, precision: str) -> None:
        """Train once, quietly.

        Raises:
            UserError: If the training fails.
        """
        given = [word for config in configs for word in ("--config", str(self.own(config)))]
        settings = ["--seed_everything", str(seed), "--trainer.precision", precision]
        # Without -P whatever lies in the working directory, a checkout maybe, comes before the build.
        command = [sys.executable, "-P", "-m", "lit_pretrain", "fit", *given, *settings, *self.arguments]
        path = os.pathsep.join([str(self.root), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "LIT_PRETRAIN_RUNS": str(self.runs)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise UserError(f"The training of the {self.name} build has failed ({said}): try it alone by fit.")

    def own(self, config: str) -> Path:
        """Its own version of a config where it has one, else the file that is named."""
        own = self.root / config
        return own if own.is_file() else Path(config).absolute()

    def curve(self, metric: str | None) -> "Curve":
        """What the latest run logged of a metric; null is the one by which it compared its checkpoints.

        Raises:
            UserError: If it logged no such metric while it validated.
        """
        with contextlib.closing(sqlite3.connect(self.runs / DATABASE_NAME)) as database:
            run, start = database.execute("SELECT run_uuid, start_time FROM runs ORDER BY start_time DESC").fetchone()
            if metric is None:
                tag = database.execute("SELECT value FROM tags WHERE run_uuid = ? AND key = ?", (run, MONITOR_TAG))
                metric = (tag.fetchone() or ("validation/loss",))[0].split(" = ")[0]
            query = "SELECT timestamp, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
            points = database.execute(query, (run, metric)).fetchall()
            if not points:
                query = "SELECT DISTINCT key FROM metrics WHERE run_uuid = ? AND key LIKE 'validation/%' ORDER BY key"
                logged = [key for (key,) in database.execute(query, (run,))]
                raise UserError(
                    f"The {self.name} build has not logged {metric}{nearest(metric, logged)}: set --metric to one of "
                    f"{', '.join(logged)}, or validate more often."
                )
        return Curve(metric, [((time - start) / 60_000, value) for time, value in points])


@dataclass(frozen=True)
class Curve:
    """A figure's values over a training.

    Attributes:
        metric: Its name.
        points: Minutes and value of each validation, in order.
    """

    metric: str
    points: list[tuple[float, float]]

    @property
    def falls(self) -> bool:
        """Whether less is better."""
        return direction(self.metric) == "min"

    def minutes_to(self, target: float) -> float | None:
        """When the figure is first as good as the target, evenly between two validations; null if it never is.

        That it was as good before the first validation is not seen.
        """
        sign = 1 if self.falls else -1
        before: tuple[float, float] | None = None
        for time, value in self.points:
            if sign * value <= sign * target:
                if before is None or value == before[1]:
                    return time
                return before[0] + (time - before[0]) * (target - before[1]) / (value - before[1])
            before = time, value
        return None


def run(arguments: argparse.Namespace) -> int:
    """Train every seed with both builds, in turns, and print the table."""
    if arguments.json:
        check_writable(Path(arguments.json))
    other, this = Path(arguments.against).absolute(), Path(lit_pretrain.__file__).parents[1]
    if not (other / "lit_pretrain" / "__main__.py").is_file():
        raise UserError(f"{arguments.against} is no checkout of lit_pretrain: give --against its top directory.")
    console, precision = Console(), str(resolve_precision(arguments.precision))
    console.width = max(console.width, 120)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        new = Build("new", this, shlex.split(arguments.new), Path(directory, "new"))
        old = Build("old", other, shlex.split(arguments.old), Path(directory, "old"))
        for config in arguments.config:
            for build in (new, old):
                if not build.own(config).is_file():
                    raise UserError(f"There is no config {config}, nor in {build.root}: check --config.")
        for seed, order in zip(arguments.seeds, itertools.cycle([(old, new), (new, old)]), strict=False):
            curves = {}
            for build in order:
                console.print(f"Seed {seed}, the {build.name} build trains ...")
                build.fit(arguments.config, seed, precision)
                curves[build.name] = build.curve(arguments.metric)
            rows.append({"seed": seed, "precision": precision} | compared(curves["new"], curves["old"]))
    title = f"Minutes to the old build's final {rows[0]['metric']}, {precision}"
    console.print(table_of(title, ["seed"], COLUMNS, rows))
    console.print(summary(rows))
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def compared(new: Curve, old: Curve) -> Row:
    """A seed's figures; `new_minutes` and `ratio` are null where the new build never reaches the old one's."""
    minutes, target = old.points[-1]
    reached = new.minutes_to(target)
    return {
        "metric": old.metric,
        "target": target,
        "old_minutes": minutes,
        "new_minutes": reached,
        "ratio": None if reached is None else reached / minutes,
        "new_final": new.points[-1][1],
        "new_final_minutes": new.points[-1][0],
    }


def summary(rows: list[Row]) -> str:
    """The ratio over the seeds."""
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    missed = f"{len(rows) - len(ratios)} of {len(rows)} seeds never reached it"
    if not ratios:
        return f"New / old: {missed}."
    spread = f"New / old: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
    return f"{spread}, {len(ratios)} seeds." if len(ratios) == len(rows) else f"{spread}; {missed}."
