"""What was measured, as rows for JSON and as tables for a person."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from lit_pretrain.commands.benchmarks.contest import Race, ratio

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        heading: Above it.
        key: Of the rows.
        form: A format for the figure, with its unit.
        factor: What the figure is multiplied by first.
    """

    heading: str
    key: str
    form: str = "{:,.0f}"
    factor: float = 1.0

    def shown(self, row: Row) -> str:
        """A row's figure; a dash for one that it does not have."""
        return "-" if row[self.key] is None else self.form.format(row[self.key] * self.factor)


MILLISECONDS = Column("ms", "milliseconds_per_step")
SPEED = (
    Column("GFLOP/s", "needed_teraflops", factor=1e3),
    Column("of peak", "share_of_peak", "{:.0%}"),
)
RATIOS = (
    Column("ours faster", "ours_is_faster_by", "{:.2f} x"),
    Column("both kept", "ours_is_faster_by_with_memory_kept_for_all", "{:.2f} x"),
    Column("and alike", "ours_is_faster_by_with_memory_kept_and_compiled_alike", "{:.2f} x"),
)
RATIOS_EXPLAINED = (
    "ours faster: ours keeps its memory from step to step, as fit does, {peer} does as in its users' processes.\n"
    "both kept: where {peer} keeps its memory too; and alike: eager beside eager, compiled beside compiled."
)


def table_of(title: str, names: Sequence[str], columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """A table of rows.

    Args:
        title: Above it.
        names: Keys of the rows that are words, and their headings.
        columns: The figures that follow.
        rows: What is shown.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names), *(column.shown(row) for column in columns))
    return table


def rows_of(race: Race, precision: str, peak: float) -> list[Row]:
    """A row for each contestant of a race.

    Args:
        race: Held with and without kept memory.
        precision: In which it was held.
        peak: Of the machine, in operations a second; only read if operations say something of this race.
    """
    rows = []
    best = race.ours.kept_seconds
    for contestant in race.contestants:
        median = statistics.median(contestant.timed)
        row = {
            race.kind: race.name,
            "contestant": contestant.name,
            "precision": precision,
            "milliseconds_per_step": median * 1e3,
            f"{race.unit}_per_second": race.amount / median,
            # Not in the same rounds, so by the medians.
            "ours_is_faster_by": median / statistics.median(best),
            "ours_is_faster_by_with_memory_kept_for_all": ratio(contestant.kept_seconds, best),
            "ours_is_faster_by_with_memory_kept_and_compiled_alike": ratio(
                contestant.kept_seconds, race.ours_like(contestant).kept_seconds
            ),
            "milliseconds_per_step_memory_not_kept": statistics.median(contestant.seconds) * 1e3,
            "milliseconds_per_step_memory_kept": statistics.median(contestant.kept_seconds) * 1e3,
        }
        if race.flops:
            # Operations that the loss needs, not those that were done: a peer that computes more does not look busier.
            speed = race.flops / median
            row |= {"needed_teraflops": speed / 1e12, "share_of_peak": speed / peak}
        rows.append(row)
    return rows


def table_of_fits(data: str, kind: str, unit: str, rows: Sequence[Row]) -> Table:
    """The table of whole fits.

    Args:
        data: What they were trained on, for the title.
        kind: What tells them apart.
        unit: What a step works off.
        rows: From `measure_fit`.
    """
    columns = [
        Column("ms a step of fit", "milliseconds_per_step"),
        Column("ms a bare step", "milliseconds_per_bare_step"),
        Column(f"{unit}/s", f"{unit}_per_second"),
        Column("of the bare step's speed", "share_of_bare_step", "{:.3f}"),
    ]
    return table_of(f"Whole fits on {data}", [kind], columns, rows)
