"""What a study of label efficiency shows: tables, files and figures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from lit_pretrain.required import required
from lit_pretrain.studies.cells import Cell, CellStore
from lit_pretrain.studies.label_efficiency import Group, LabelEfficiency
from lit_pretrain.studies.plots import Line, Panel
from lit_pretrain.studies.scheduler import duration
from lit_pretrain.studies.tables import Report, Row, cell_rows, finite, mean_columns, shown_mean, table, write_files


def report(study: LabelEfficiency, store: CellStore, directory: Path | None) -> Report:
    """Everything that has come of the study so far.

    Args:
        study: Which.
        store: Its cells.
        directory: Where the files go; null for none.
    """
    groups = study.groups(store)
    return Report(
        rows_of(groups),
        tables_of(study, groups),
        notes_of(study, groups),
        write(study, groups, directory) if directory is not None else [],
        curves(study, groups),
        [pair for group in groups for pair in group.cells],
    )


def planned(study: LabelEfficiency, store: CellStore) -> tuple[list[Cell], str]:
    """Cells that are known to be needed, and what is to be said of those that are not known yet."""
    search = {cell.hash: cell for cell in study.cells_to_search()}
    cells = list((search | {cell.hash: cell for cell in study.cells_of_seeds(store)}).values())
    later = study.total - len(cells)
    return cells, f"{later} more when their learning rates are chosen" if later > 0 else ""


def notes_of(study: LabelEfficiency, groups: Sequence[Group]) -> list[str]:
    """What a reader should know beside the figures."""
    notes = [
        f"{group.encoder} with {shown_budget(group)} labels took the {group.at_edge} learning rate that was tried, "
        f"{group.rate:g}: a better one may lie beyond."
        for group in groups
        if group.at_edge
    ]
    if any(group.saved for group in groups):
        reference = study.settings.resolved_reference
        notes.insert(0, f"Labels saved: how many times as many labels {reference} needs to be as good.")
    if len(study.settings.seeds) == 1:
        notes.append("With one seed there are no intervals: differences of some points may be chance.")
    return notes


def chosen_with(study: LabelEfficiency) -> str:
    """Which seed learning rates were chosen with, and that it is not left out of the means."""
    return (
        f"Learning rates were chosen by {study.settings.validation_metric} of seed {study.settings.seeds[0]}, which "
        "counts in the means too"
    )


def rows_of(groups: Sequence[Group]) -> list[Row]:
    """A row a group, figures as numbers."""
    rows = []
    for group in groups:
        saved = group.saved
        rows.append(
            {
                "encoder": group.encoder,
                "label_budget": "all" if group.budget is None else group.budget,
                "labels": group.labels,
                "learning_rate": group.rate,
                "learning_rate_at_edge": group.at_edge,
                "learning_rate_seed": group.cells[0][0].labels["seed"] if group.tried else None,
                **mean_columns(group.mean),
                "seeds": len(group.cells),
                "reached_target": group.reached,
                "steps_to_target": group.steps_to_target,
                "seconds_to_target": group.seconds_to_target,
                "labels_saved": finite(saved.value) or None if saved else None,
                "labels_saved_low": finite(saved.low) if saved else None,
                "labels_saved_high": finite(saved.high) if saved else None,
                "labels_saved_in_words": str(saved) if saved else "",
            }
        )
    return rows


def tables_of(study: LabelEfficiency, groups: Sequence[Group]) -> list[Table]:
    """Tables for a person: the groups, and the learning rates that were tried."""
    settings = study.settings
    headings = [("encoder", "left"), ("labels", "right"), (settings.metric, "right"), ("seeds", "right")]
    headings.append(("labels saved", "right"))
    with_target, with_rates = settings.target is not None, any(group.tried for group in groups)
    if with_target:
        headings += [("steps to target", "right"), ("time", "right"), ("reached", "right")]
    if with_rates:
        headings.append(("learning rate", "right"))
    lines = []
    for group in groups:
        count = len([cell for _, cell in group.cells if cell is not None and cell.status == "finished"])
        labels = f"{group.labels:,}" if group.labels else shown_budget(group)
        line = [group.encoder, labels, shown_mean(group.mean), f"{count}/{len(group.cells)}", shown_saved(group)]
        if with_target:
            steps, seconds = group.steps_to_target, group.seconds_to_target
            reached = "-" if group.reached is None else f"{group.reached}/{count}"
            line += ["-" if steps is None else f"{steps:g}", "-" if seconds is None else duration(seconds), reached]
        if with_rates:
            edge = f" ({group.at_edge} tried)" if group.at_edge else ""
            line.append("-" if group.rate is None else f"{group.rate:g}{edge}")
        lines.append(line)
    caption = chosen_with(study) if with_rates else ""
    tables = [table(f"{settings.name}: mean and 95 % interval over seeds", headings, lines, caption)]
    if with_rates:
        tried = [
            [group.encoder, shown_budget(group), f"{rate:g}", "-" if value is None else f"{value:.4g}"]
            for group in groups
            for rate, value in group.tried.items()
        ]
        headings = [("encoder", "left"), ("label budget", "right"), ("learning rate", "right")]
        headings.append((settings.validation_metric, "right"))
        tables.append(table(f"Learning rates, tried with seed {settings.seeds[0]}", headings, tried))
    return tables


def shown_budget(group: Group) -> str:
    """The label budget as the study's file has it."""
    return "all" if group.budget is None else f"{group.budget:g}"


def shown_saved(group: Group) -> str:
    """The factor of labels saved, with its interval."""
    saved = group.saved
    if saved is None:
        return "-"
    if saved.low is None:
        return str(saved)
    low = f"{saved.low:.3g}" if saved.low else f"<{saved.least:.3g}"
    high = f"{saved.high:.3g}" if finite(saved.high) is not None else f">{saved.most:.3g}"
    return f"{saved} [{low}, {high}]"


def panels_of(study: LabelEfficiency, groups: Sequence[Group]) -> list[Panel]:
    """The metric over labels; steps to the target and labels saved where there are any."""
    settings = study.settings
    by_encoder = {
        name: sorted(
            (group for group in groups if group.encoder == name and group.mean and group.labels),
            key=lambda group: required(group.labels),
        )
        for name in settings.encoders
    }
    lines = [
        Line(
            name,
            [required(group.labels) for group in found],
            [required(group.mean).value for group in found],
            [required(group.mean).low for group in found],
            [required(group.mean).high for group in found],
            color=list(settings.encoders).index(name),
        )
        for name, found in by_encoder.items()
        if found
    ]
    level = (settings.target, f"target {settings.target:g}") if settings.target is not None else None
    title = f"{settings.metric}, mean and 95 % interval"
    share = all(0 <= value <= 1 for line in lines for value in line.y) and study.higher_is_better
    panels = [Panel(title, "labels", settings.metric, lines, level, ticks=True, share=share)]
    steps = lines_of(by_encoder, lambda group: group.steps_to_target)
    if steps:
        title = f"Steps until {settings.validation_metric} is {settings.target:g}"
        panels.append(Panel(title, "labels", "optimiser steps", steps, ticks=True))
    saved = lines_of(by_encoder, lambda group: group.saved and (finite(group.saved.value) or None))
    if saved:
        reference = settings.resolved_reference
        title = f"Labels saved: how many times as many {reference} needs"
        panels.append(Panel(title, "labels", "factor", saved, (1.0, f"as many as {reference}"), True, log_y=True))
    return panels


def lines_of(by_encoder: dict[str, list[Group]], figure: Callable) -> list[Line]:
    """A line for each encoder of the groups that have a figure."""
    lines = []
    for color, (name, groups) in enumerate(by_encoder.items()):
        points = [(required(group.labels), figure(group)) for group in groups if figure(group) is not None]
        if points:
            lines.append(Line(name, [x for x, _ in points], [y for _, y in points], color=color))
    return lines


def write(study: LabelEfficiency, groups: Sequence[Group], directory: Path) -> list[Path]:
    """Write cells.csv, groups.csv and label_efficiency.png; returns the files."""
    cells = [pair for group in groups for pair in group.cells]
    tables = {"cells.csv": cell_rows(cells, study.settings.metric), "groups.csv": rows_of(groups)}
    return write_files(directory, tables, panels_of(study, groups), study.settings.name, "label_efficiency.png")


def curves(study: LabelEfficiency, groups: Sequence[Group]) -> dict[str, list[tuple[int, float]]]:
    """The figure's lines as curves over labels, for the run's page."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for group in groups:
        if group.mean and group.labels:
            lines.setdefault(f"{study.settings.metric}/{group.encoder}", []).append((group.labels, group.mean.value))
    return lines
