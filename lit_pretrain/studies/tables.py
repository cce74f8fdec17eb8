"""What both studies tell in the same way: rows, files, a table, the cells that did not finish."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from lit_pretrain.measures.intervals import Mean
from lit_pretrain.studies.cells import Cell, CellStore, Outcome
from lit_pretrain.studies.plots import Panel, draw
from lit_pretrain.tracking.paths import write_csv

Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What a study tells.

    Attributes:
        rows: For JSON.
        tables: For a person.
        notes: Sentences beneath them.
        files: That were written.
        curves: Name -> (step, value), for the run's page.
        cells: All that were asked for, with what came of them.
    """

    rows: list[Row]
    tables: list[Table]
    notes: list[str]
    files: list[Path]
    curves: dict[str, list[tuple[int, float]]]
    cells: list[tuple[Cell, Outcome | None]]


def plan_table(cells: Sequence[Cell], store: CellStore) -> Table:
    """Each cell with where it stands."""
    lines = []
    for cell in cells:
        outcome = store.outcome(cell)
        state = outcome.status if outcome else "begun" if store.log_path(cell).is_file() else "to do"
        lines.append([cell.name, f"{cell.steps:,}" if cell.steps > 0 else "by epochs", state])
    headings = [("cell", "left"), ("steps", "right"), ("state", "left")]
    return table("Cells", headings, lines)


def mean_columns(mean: Mean | None) -> Row:
    """A mean's figures; null where there are none."""
    if mean is None:
        return {"mean": None, "low": None, "high": None, "deviation": None, "finished": 0}
    return {
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "deviation": mean.deviation,
        "finished": mean.count,
    }


def cell_rows(cells: Sequence[tuple[Cell, Outcome | None]], metric: str) -> list[Row]:
    """A row a cell."""
    rows = []
    for cell, outcome in cells:
        metrics = outcome.metrics if outcome else {}
        rows.append(
            {
                **cell.labels,
                "status": outcome.status if outcome else "to do",
                metric: metrics.get(metric),
                "validation": metrics.get("validation/" + metric.partition("/")[2]),
                "steps": cell.steps,
                "seconds": outcome.seconds if outcome else None,
                "run_id": outcome.run_id if outcome else "",
                "study": outcome.study if outcome else "",
                "reason": outcome.reason if outcome else "",
                "cell": cell.hash,
            }
        )
    return rows


def write_files(
    directory: Path, tables: Mapping[str, Sequence[Row]], panels: Sequence[Panel], title: str, figure: str
) -> list[Path]:
    """Write a report's tables, and its figure unless nothing has finished.

    Args:
        directory: Where they go.
        tables: Rows by the names of their files.
        panels: Of the figure.
        title: Of the figure.
        figure: Name of its file.

    Returns:
        The files.
    """
    files = [write_csv(directory / name, rows) for name, rows in tables.items()]
    if panels[0].lines:
        draw(panels, title, directory / figure)
        files.append(directory / figure)
    return files


def finite(value: float | None) -> float | None:
    """A number as JSON has it, which knows no infinity."""
    return value if value is not None and math.isfinite(value) else None


def table(title: str, headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """A table of words.

    Args:
        title: Above it.
        headings: (heading, "left" or "right") of each column.
        rows: What is shown.
        caption: Below it; empty for none.
    """
    made = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=caption or None, caption_justify="left"
    )
    for heading, justify in headings:
        made.add_column(heading, justify=cast(JustifyMethod, justify), overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def shown_mean(mean: Mean | None) -> str:
    """A mean and its interval for a table."""
    if mean is None:
        return "-"
    return f"{mean.value:.4g}" if mean.half_width is None else f"{mean.value:.4g} ± {mean.half_width:.2g}"


def unfinished(cells: Sequence[tuple[Cell, Outcome | None]]) -> list[str]:
    """A line for each cell that failed or diverged."""
    return [
        f"{cell.name}: {outcome.status}: {outcome.reason}"
        for cell, outcome in cells
        if outcome is not None and outcome.status != "finished"
    ]
