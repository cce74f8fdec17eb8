"""A comparison for a terminal of 100 columns, and as rows for JSON."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lit_pretrain.comparison.figures import Cost, Figure
from lit_pretrain.comparison.groups import Comparison, Group, Row, Subject
from lit_pretrain.comparison.lineage import lineage_words
from lit_pretrain.comparison.protocol import protocol_words, shown_entry
from lit_pretrain.comparison.settings import short_names, shortened, shown_setting
from lit_pretrain.measures.intervals import LEVEL, Mean, mean_of

WIDTH = 100
NAME_WIDTH = 28
# On a narrower terminal names are folded to so many columns before anything is cut.
LEAST_NAME_WIDTH = 16
NUMBER_WIDTH = 10
RUNS_BESIDE = 6
VALUE_WIDTH = 14
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def shown_number(value: float, digits: int = 4) -> str:
    """A number with so many digits, large ones whole."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def shown_mean(mean: Mean) -> str:
    """A mean and its interval."""
    value = shown_number(mean.value)
    return value if mean.half_width is None else f"{value} ± {shown_number(mean.half_width, 2)}"


def shown_measured(figures: Sequence[Figure]) -> str:
    """Figures of the seeds of a config: their mean with its interval, of a single one that of its own draws."""
    interval = figures[0].interval
    if interval is not None and len(figures) == 1:
        return f"{shown_number(figures[0].value)} ± {shown_number(interval, 2)}"
    return shown_mean(mean_of([figure.value for figure in figures]))


def shown_amount(number: float | None) -> str:
    """A number of samples or operations with three digits: 4.59M."""
    if number is None:
        return "–"
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.3g}"


def shown_minutes(minutes: float | None) -> str:
    """Minutes with a digit after the point, those of seconds with two digits that say something."""
    if minutes is None:
        return "–"
    return f"{minutes:,.1f}" if minutes >= 1 or minutes == 0 else f"{minutes:.2g}"


def shown_seen(cost: Cost) -> str:
    """What a training has seen: tokens of texts, else samples."""
    return shown_amount(cost.tokens if cost.tokens is not None else cost.samples)


def shown_steps(steps: Sequence[int]) -> str:
    """A step, or the first and the last of several."""
    if not steps:
        return "–"
    return f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}–{steps[-1]:,}"


def title_of(row: Row) -> str:
    """A row's name with what is to be known of it."""
    facts = [f"{len(row.subjects)} seeds"] if len(row.subjects) > 1 else []
    facts += [row.state] if row.state else []
    return row.name + (f" ({', '.join(facts)})" if facts else "")


def fit_beside(group: Group) -> bool:
    """Whether each setting that differs can have a column in the main table; else they have a table of their own."""
    tests = {metric for metric, _ in test_protocols(group) if metric.startswith("test/")}
    left = WIDTH - NAME_WIDTH - NUMBER_WIDTH * (5 + len(tests))
    for key, name in short_names(group.differing).items():
        values = [shown_setting(row.settings.get(key)) for row in group.rows]
        left -= min(VALUE_WIDTH, max(map(len, [*values, *name.split("_")]))) + 1
    return left >= 0


def heading_of(metric: str) -> str:
    """A metric's name as a narrow heading, a part a line."""
    return metric.replace("/", "/\n").replace("_", " ")


def least_width(table: Table, console: Console) -> int:
    """Columns of a terminal within which none of a table's is cut; rich leaves out the last ones without a word."""
    # Between two columns stand the padding and the divider of the box.
    total = (len(table.columns) - 1) * (table.padding[1] + 1) + table.padding[1]
    for column in table.columns:
        texts = (column.header, *column.cells)
        sizes = [Measurement.get(console, console.options.update(max_width=10_000), text) for text in texts]
        widest = max(size.maximum for size in sizes)
        total += widest if column.no_wrap else column.min_width or min(widest, VALUE_WIDTH)
    return total


def test_protocols(group: Group) -> dict[Any, str]:
    """A letter for each protocol of the figures beside, in the order of the rows."""
    found = dict.fromkeys(key for row in group.rows for key in row.tests())
    return {key: LETTERS[place % len(LETTERS)] * (1 + place // len(LETTERS)) for place, key in enumerate(found)}


def table_of(group: Group) -> Table:
    """The main table of a group."""
    protocols = test_protocols(group)
    on_test = [key for key in protocols if key[0].startswith("test/")]
    tests = list(dict.fromkeys(metric for metric, _ in on_test))
    texts = any(row.cost.tokens is not None for row in group.rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=LEAST_NAME_WIDTH)
    shown = short_names(group.differing) if fit_beside(group) else {}
    for name in shown.values():
        table.add_column(name.replace("_", "\n"), justify="right", overflow="fold")
    table.add_column(heading_of(group.metric), justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    for metric in tests:
        table.add_column(heading_of(metric), justify="right", no_wrap=True)
    for heading in ("minutes", "tokens" if texts else "samples", "PFLOP"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(group.rows, 1):
        title = Text(shortened(title_of(row), NAME_WIDTH + 10))
        if row.lineage:
            title.append(f"\n{row.lineage}", style="dim")
        cost, beside = row.cost, row.tests()
        line: list[Any] = [str(place) if group.way else "", title]
        line += [shortened(shown_setting(row.settings.get(key)), VALUE_WIDTH) for key in shown]
        line += [shown_mean(row.mean), shown_steps(row.steps)]
        for metric in tests:
            cells = []
            for key in on_test:
                if key[0] == metric and key in beside:
                    mark = f" {protocols[key]}" if len(on_test) > 1 else ""
                    cells.append(shown_mean(mean_of([figure.value for figure in beside[key]])) + mark)
            line.append("\n".join(cells) or "–")
        line += [
            shown_minutes(cost.minutes),
            shown_seen(cost),
            "–" if cost.petaflops is None else f"{cost.petaflops:.3g}",
        ]
        table.add_row(*line)
    return table


def settings_tables(group: Group) -> list[Table]:
    """Tables of the settings that differ, runs beside each other, where there are too many for the main one."""
    if fit_beside(group):
        return []
    tables = []
    names = short_names(group.differing, least=2)
    for start in range(0, len(group.rows), RUNS_BESIDE):
        rows = group.rows[start : start + RUNS_BESIDE]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("settings that differ", overflow="fold")
        for place in range(start + 1, start + len(rows) + 1):
            table.add_column(f"# {place}", justify="right", overflow="fold")
        width = max(VALUE_WIDTH - 2, 60 // len(rows))
        for name in group.differing:
            values = [shortened(shown_setting(row.settings.get(name)), width) for row in rows]
            table.add_row(shortened(names[name], 34), *values)
        tables.append(table)
    return tables


def notes_of(group: Group) -> list[str]:
    """Sentences beneath a group's table."""
    notes = []
    protocols = test_protocols(group)
    on_test = [key for key in protocols if key[0].startswith("test/")]
    for key in on_test:
        letter = f"{protocols[key]}: " if len(on_test) > 1 else ""
        notes.append(f"{letter}{protocol_words(dict(key[1]))}")
    if len(on_test) > len({metric for metric, _ in on_test}):
        notes.append("Figures of different letters are not comparable.")
    if any(row.mean.half_width is not None for row in group.rows):
        notes.append(f"±: {LEVEL:.0%} interval of the mean over the seeds, by Student's t.")
    for row in group.rows:
        if row.repeated:
            ids = ", ".join(run.run_id[:8] for run in row.repeated)
            notes.append(f"{row.name}: of runs with the same config and seed the latest counts; left out: {ids}.")
    if group.way is None:
        notes.append(f"Nothing says whether {group.metric} should be large or small: not ranked.")
    if len(group.commits) > 1:
        notes.append(f"The code differs: commits {', '.join(commit[:8] for commit in group.commits[:6])}.")
    return notes


def beside_table(group: Group) -> Table | None:
    """Figures of `evaluate` of a group's runs; null if there are none."""
    found = {key: letter for key, letter in test_protocols(group).items() if not key[0].startswith("test/")}
    if not found:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("frozen features", overflow="fold")
    table.add_column("measured on", overflow="fold")
    table.add_column("#", justify="right")
    table.add_column("value", justify="right", no_wrap=True)
    for metric, protocol in found:
        for place, row in enumerate(group.rows, 1):
            figures = row.tests().get((metric, protocol), [])
            if figures:
                facts = dict(protocol)
                count = shown_entry("samples", facts["samples"]) if "samples" in facts else ""
                where = [facts.get("split", ""), count, facts.get("input", "")]
                value = shown_measured(figures)
                words = ", ".join(word for word in where if word)
                table.add_row(metric.removeprefix("evaluate/"), words, str(place), value)
    return table


def json_of(comparison: Comparison) -> dict[str, Any]:
    """Everything, as JSON has it."""
    return {
        "groups": [
            {
                "metric": group.metric,
                "direction": group.way,
                "protocol": group.protocol,
                "why_apart": group.why or None,
                "settings_that_differ": group.differing,
                "commits": group.commits,
                "rows": [row_json(place, row, group) for place, row in enumerate(group.rows, 1)],
            }
            for group in comparison.groups
        ],
        "without_figure": [subject_json(subject) for subject in comparison.without],
    }


def row_json(place: int, row: Row, group: Group) -> dict[str, Any]:
    """A row of a group."""
    return {
        "rank": place if group.way else None,
        "name": row.name,
        "lineage": row.lineage,
        "settings": {name: row.settings.get(name) for name in group.differing},
        "mean": row.mean.value,
        "low": row.mean.low,
        "high": row.mean.high,
        "seeds": row.seeds,
        "steps": row.steps,
        "cost": vars(row.cost),
        "left_out": [run.run_id for run in row.repeated],
        "runs": [subject_json(subject) for subject in row.subjects],
    }


def subject_json(subject: Subject) -> dict[str, Any]:
    """A run."""
    run = subject.run
    return {
        "run_id": run.run_id,
        "name": run.name,
        "experiment": run.experiment,
        "status": run.status,
        "seed": run.seed,
        "lineage": lineage_words(subject.starts),
        "figure": vars(subject.figure) if subject.figure is not None else None,
        "beside": [vars(figure) for figure in subject.tests],
        "cost": vars(subject.cost),
        "cost_with_lineage": vars(subject.whole_cost),
    }
