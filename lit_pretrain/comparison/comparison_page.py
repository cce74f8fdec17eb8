"""The page of a comparison: curves, the settings that differ, figures with their protocols, cost."""

import datetime
from collections.abc import Sequence

from lit_pretrain.comparison.charts import Curve
from lit_pretrain.comparison.curves import axes_of, curve_over
from lit_pretrain.comparison.groups import Comparison, Group, Row
from lit_pretrain.comparison.page import chart, legend, page, paragraph, section, switch, table
from lit_pretrain.comparison.protocol import protocol_words
from lit_pretrain.comparison.runs import RunStore
from lit_pretrain.comparison.settings import short_names, shown_setting
from lit_pretrain.comparison.table import (
    notes_of,
    shown_mean,
    shown_measured,
    shown_minutes,
    shown_seen,
    shown_steps,
    test_protocols,
    title_of,
)
from lit_pretrain.measures.intervals import mean_of

TRAINING = ("validation/loss", "train/loss")


def page_of(comparison: Comparison) -> str:
    """The whole page."""
    groups = comparison.groups
    count = sum(len(row.subjects) for group in groups for row in group.rows)
    parts = [f"<h1>{count} runs compared</h1>"]
    if len(groups) > 1:
        text = f"In {len(groups)} parts: figures of different parts were measured in different ways and say nothing "
        parts.append(paragraph(f"{text}of each other."))
    for place, group in enumerate(groups):
        parts.append(group_section(place, group, comparison.store))
    if comparison.without:
        rows = [(one.run.name, one.run.experiment, one.run.status.lower()) for one in comparison.without]
        parts.append(section("without", "Without such a figure", table(("run", "experiment", "state"), rows)))
    return page("Runs compared", parts, made_now())


def made_now() -> str:
    """When a page was made."""
    return f"made {datetime.datetime.now():%Y-%m-%d %H:%M}"


def group_section(place: int, group: Group, store: RunStore) -> str:
    """A group: why it stands apart, figures, curves, settings."""
    why = f"Not ranked with the first part: {group.why}." if group.why else ""
    return section(
        f"group-{place}",
        group.metric,
        paragraph(protocol_words(group.protocol), "dim"),
        paragraph(why, "bad") if why else "",
        figures_table(group),
        *(paragraph(note, "dim") for note in notes_of(group)),
        beside(group),
        curves(f"curves-{place}", group, store),
        settings(group),
    )


def names_of(group: Group) -> list[str]:
    """A name for each row, with its place where two are called alike."""
    names = [title_of(row) for row in group.rows]
    return [f"{place}. {name}" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def figures_table(group: Group) -> str:
    """Figures and costs, the best first."""
    protocols = test_protocols(group)
    on_test = [key for key in protocols if key[0].startswith("test/")]
    several = len(on_test) > 1
    headings = ["#", "run", "from", group.metric, "step"]
    headings += [f"{metric} {protocols[metric, protocol]}" if several else metric for metric, protocol in on_test]
    texts = any(row.cost.tokens is not None for row in group.rows)
    headings += ["minutes", "tokens" if texts else "samples", "petaFLOPs", "minutes with all before"]
    rows = []
    for place, row in enumerate(group.rows, 1):
        found, cost = row.tests(), row.cost
        tests = [shown_mean(mean_of([one.value for one in found[key]])) if key in found else "–" for key in on_test]
        rows.append(
            [
                place if group.way else "",
                title_of(row),
                row.lineage.removeprefix("from "),
                shown_mean(row.mean),
                shown_steps(row.steps),
                *tests,
                shown_minutes(cost.minutes),
                shown_seen(cost),
                "–" if cost.petaflops is None else f"{cost.petaflops:.3g}",
                shown_minutes(row.subjects[0].whole_cost.minutes),
            ]
        )
    numbers = [0, *range(3, len(headings))]
    return table(headings, rows, numbers, best=0 if group.way and len(rows) > 1 else -1)


def beside(group: Group) -> str:
    """What `evaluate` has found of these runs."""
    keys = [key for key in test_protocols(group) if not key[0].startswith("test/")]
    rows = []
    for metric, protocol in keys:
        for name, row in zip(names_of(group), group.rows, strict=True):
            figures = row.tests().get((metric, protocol), [])
            if figures:
                mean = shown_measured(figures)
                words = protocol_words({key: value for key, value in protocol if key != "protocols"})
                rows.append([metric.removeprefix("evaluate/"), name, mean, words.partition(" on ")[2]])
    headings = ("frozen features", "run", "value", "measured on")
    return f"<h3>Frozen features</h3>{table(headings, rows, [2])}" if rows else ""


def curves(name: str, group: Group, store: RunStore) -> str:
    """Charts of the group's metric and of the losses, over each of the axes."""
    runs = [subject.run for row in group.rows for subject in row.subjects]
    metrics = [
        metric
        for metric in dict.fromkeys((group.metric, *TRAINING))
        if not metric.startswith(("evaluate/", "test/")) and any(metric in run.metrics for run in runs)
    ]
    panels = {}
    for axis, total in axes_of(runs).items():
        charts = [chart(metric, lines(group.rows, metric, total, store), axis) for metric in metrics]
        panels[f"over {axis}"] = f'<div class="charts">{"".join(charts)}</div>'
    names = legend([Curve(name, color=place) for place, name in enumerate(names_of(group))])
    return f"<h3>Curves</h3>{names}{switch(name, panels)}" if metrics else ""


def lines(rows: Sequence[Row], metric: str, total: str, store: RunStore) -> list[Curve]:
    """A line for each run, those of a row in one colour."""
    return [
        Curve(subject.run.name, curve_over(subject.run, metric, total, store), place)
        for place, row in enumerate(rows)
        for subject in row.subjects
    ]


def settings(group: Group) -> str:
    """The settings that differ, runs beside each other."""
    if len(group.rows) < 2:
        return ""
    if not group.differing:
        return paragraph("These runs do not differ in their settings.", "dim")
    names = short_names(group.differing, least=2)
    rows = [[names[key], *(shown_setting(row.settings.get(key)) for row in group.rows)] for key in group.differing]
    return f"<h3>Settings that differ</h3>{table(['setting', *names_of(group)], rows)}"
