"""What a study of scaling shows: tables, files and figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy
from rich.table import Table

from lit_pretrain.errors import UserError
from lit_pretrain.measures.intervals import PowerLaw
from lit_pretrain.studies.cells import Cell, CellStore
from lit_pretrain.studies.plots import Line, Panel
from lit_pretrain.studies.scaling import Law, Point, Scaling
from lit_pretrain.studies.tables import Report, Row, cell_rows, finite, mean_columns, shown_mean, table, write_files

AXES = {
    "transformer_parameters": "parameters of the blocks",
    "flops": "operations of the training (FLOPs)",
    "data": "training sequences or pictures",
}


def report(study: Scaling, store: CellStore, directory: Path | None) -> Report:
    """Everything that has come of the study so far.

    Args:
        study: Which.
        store: Its cells.
        directory: Where the files go; null for none.

    Raises:
        UserError: If not even the sizes of its shapes are known.
    """
    facts = study.measured(store)
    if facts is None:
        raise UserError("The study has measured no step yet: leave --report out to start it.")
    points = study.points(store, facts)
    laws = study.laws(points)
    return Report(
        rows_of(points),
        tables_of(study, points),
        law_sentences(laws),
        write(study, points, laws, directory) if directory is not None else [],
        curves(study, points),
        [pair for point in points for pair in point.cells],
    )


def planned(study: Scaling, store: CellStore) -> tuple[list[Cell], str]:
    """Cells that are known to be needed, and what is to be said of those that are not known yet."""
    facts = study.measured(store)
    if facts is None and "steps" in study.settings.budget:
        # Their costs do not matter, their order then neither.
        facts = {shape: {"cost": {}, "parameters": 0} for shape in study.shapes}
    if facts is None:
        return [], f"{study.total} cells, whose steps follow from the cost of one, measured at the start"
    return study.cells(facts), ""


def rows_of(points: Sequence[Point]) -> list[Row]:
    """A row a point, figures as numbers."""
    return [
        {
            "width": point.width,
            "depth": point.depth,
            "data_size": "all" if point.size is None else point.size,
            "data": point.data,
            "parameters": point.parameters,
            "transformer_parameters": point.transformer_parameters,
            "steps": point.steps,
            "flops": point.flops,
            **mean_columns(point.mean),
            "seeds": len(point.cells),
        }
        for point in points
    ]


def law_rows(laws: Sequence[Law]) -> list[Row]:
    """A row a law; without one, why."""
    rows = []
    for law in laws:
        row: Row = {"over": law.over, "among": law.among}
        if isinstance(law.fit, PowerLaw):
            row |= {"floor": law.fit.floor, "factor": law.fit.factor, "exponent": law.fit.exponent}
            row |= {"exponent_half_width": finite(law.fit.half_width), "determined": law.fit.determined, "reason": ""}
        else:
            row["reason"] = law.fit
        rows.append(row)
    return rows


def tables_of(study: Scaling, points: Sequence[Point]) -> list[Table]:
    """The table for a person."""
    headings = [("width", "right"), ("depth", "right"), ("data", "right"), ("parameters", "right")]
    headings += [("of the blocks", "right"), ("steps", "right"), ("TFLOPs", "right")]
    headings += [(study.settings.metric, "right"), ("seeds", "right")]
    lines = []
    for point in points:
        count = point.mean.count if point.mean else 0
        data = f"{point.data:,}" if point.data else "all" if point.size is None else f"{point.size:g}"
        lines.append(
            [
                str(point.width),
                str(point.depth),
                data,
                f"{point.parameters:,}",
                f"{point.transformer_parameters:,}",
                f"{point.steps:,}",
                f"{point.flops / 1e12:,.3g}",
                shown_mean(point.mean),
                f"{count}/{len(point.cells)}",
            ]
        )
    return [table(f"{study.settings.name}: under an equal budget of {shown_budget(study)}", headings, lines)]


def shown_budget(study: Scaling) -> str:
    """The budget in words."""
    ((kind, amount),) = study.settings.budget.items()
    return f"{amount:,.4g} {'FLOPs' if kind == 'flops' else kind}"


def law_sentences(laws: Sequence[Law]) -> list[str]:
    """Each law, or why there is none."""
    lines = []
    for law in laws:
        determined = isinstance(law.fit, PowerLaw) and law.fit.determined
        sentence = f"loss = {law.fit}" if determined else f"no power law: {law.fit}"
        lines.append(f"Over {AXES[law.over]} x ({law.among}): {sentence}.")
    return lines


def panels_of(study: Scaling, points: Sequence[Point], laws: Sequence[Law]) -> list[Panel]:
    """The loss over parameters, operations and data."""
    done = [point for point in points if point.mean is not None]
    fits = {law.over: law.fit for law in laws if isinstance(law.fit, PowerLaw) and law.fit.determined}
    panels = []
    for over in ("transformer_parameters", "flops", "data"):
        # Over data, a line a shape; else a line an amount of data.
        if over == "data" and len(study.settings.sizes) < 2:
            continue
        lines: list[Line] = []
        for name in dict.fromkeys(line_name(point, over, study) for point in done):
            points_of_line = [point for point in done if line_name(point, over, study) == name and getattr(point, over)]
            points_of_line.sort(key=lambda point: getattr(point, over))
            if points_of_line:
                x, means = (
                    [float(getattr(point, over)) for point in points_of_line],
                    [point.mean for point in points_of_line],
                )
                value, low, high = ([getattr(mean, part) for mean in means] for part in ("value", "low", "high"))
                lines.append(Line(name, x, value, low, high, color=len(lines)))
        if over in fits and lines:
            ends = [value for line in lines for value in line.x]
            between = numpy.geomspace(min(ends), max(ends), 60)
            heights = numpy.asarray(fits[over](between))
            lines.append(Line("fit", between.tolist(), heights.tolist(), dashed=True, color=6))
        title = f"{study.settings.metric} over {AXES[over]}"
        if over in fits:
            title += f"\n{fits[over]}"
        panels.append(Panel(title, AXES[over], study.settings.metric, lines))
    return panels


def line_name(point: Point, over: str, study: Scaling) -> str:
    """Which line a point is on."""
    if over == "data":
        return f"{point.width} x {point.depth}"
    if len(study.settings.sizes) < 2:
        return study.settings.metric
    return f"data {'all' if point.size is None else f'{point.size:g}'}"


def write(study: Scaling, points: Sequence[Point], laws: Sequence[Law], directory: Path) -> list[Path]:
    """Write cells.csv, points.csv, laws.csv and scaling.png; returns the files."""
    cells = [pair for point in points for pair in point.cells]
    tables = {
        "cells.csv": cell_rows(cells, study.settings.metric),
        "points.csv": rows_of(points),
        "laws.csv": law_rows(laws),
    }
    title = f"{study.settings.name}: {shown_budget(study)} each"
    return write_files(directory, tables, panels_of(study, points, laws), title, "scaling.png")


def curves(study: Scaling, points: Sequence[Point]) -> dict[str, list[tuple[int, float]]]:
    """The loss over parameters as curves, for the run's page."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        if point.mean:
            name = f"{study.settings.metric}/data {'all' if point.size is None else f'{point.size:g}'}"
            lines.setdefault(name, []).append((point.parameters, point.mean.value))
    return lines
