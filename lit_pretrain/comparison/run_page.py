"""The page of a run: what it is, what came of it, where it comes from, and what to do next."""

import datetime
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from lit_pretrain.comparison.charts import Box, Curve, graph
from lit_pretrain.comparison.comparison_page import made_now
from lit_pretrain.comparison.curves import axes_of, curve_over
from lit_pretrain.comparison.figures import (
    BEST,
    Figure,
    chance_of,
    cost_of,
    figures_of,
    kept_for,
    measured_figures,
    metrics_of,
)
from lit_pretrain.comparison.lineage import SCRATCH, Start, ancestors, lineage_words, starts_of
from lit_pretrain.comparison.next_commands import next_commands, reference_of
from lit_pretrain.comparison.page import chart, details, page, paragraph, section, switch, table, tiles
from lit_pretrain.comparison.protocol import protocol_words
from lit_pretrain.comparison.run_files import (
    PANELS,
    Budget,
    RunFiles,
    examples,
    pictures,
    read_table,
    shown_table,
)
from lit_pretrain.comparison.runs import Run, RunStore
from lit_pretrain.comparison.settings import SECTIONS, shortened, shown_setting
from lit_pretrain.comparison.table import shown_amount, shown_minutes, shown_number
from lit_pretrain.tracking.find import RunRecord
from lit_pretrain.tracking.writer import REFUSED_NAME, UNSENT_NAME

# Runs that started from this one, as the graph shows.
MOST_CHILDREN = 6
# Charts that are shown at once; the others when they are asked for.
MOST_CHARTS = 6
DEPTH = re.compile(r"(?P<before>.*(?:knn|linear)[^/]*)/block_(?P<block>\d+)(?P<after>/.*)?$")
MACHINE = {"machine.memory_gib": "memory in GiB", "machine.peak_teraflops": "measured peak in TFLOP/s"}
SPEED = {
    "samples a second": "throughput/samples_per_second",
    "tokens a second": "throughput/tokens_per_second",
    "share of the machine's measured peak": "throughput/share_of_peak",
    "GiB of memory, at most": "throughput/peak_memory_gib",
}


def run_page(run: Run, store: RunStore, records: Sequence[RunRecord]) -> str:
    """The whole page.

    Args:
        run: Which.
        store: Where it is.
        records: Runs that have a directory here.
    """
    measurements = store.measurements_of(run.run_id)
    starts = starts_of(run, store)
    directories = {record.run_id: record.directory for record in records}
    reference = reference_of(run, records)
    former = next((start.run for start in ancestors(starts) if start.run is not None), None)
    commands = next_commands(run, reference, reference_of(former, records) if former is not None else None)
    budget = Budget()
    with TemporaryDirectory() as scratch:
        files = RunFiles(store, directories, Path(scratch))
        parts = [
            heading(run, starts, measurements, store),
            faults(run, directories.get(run.run_id)),
            section("lineage", "Where it comes from", lineage_graph(run, starts, measurements, store)),
            section("figures", "Figures", figures_table(run, measurements, store)),
            section("curves", "Curves", curves(run, store)),
            section("speed", "Speed", speed(run, store)),
            section("depth", "What the features are worth by depth", depth(run, measurements)),
            section("examples", "Filled in by the model", *examples_of(files.of(run))),
            section("panels", "Pictures", pictures(files.of(run), PANELS, budget)),
            *(measured(one, files.of(one), budget) for one in measurements),
            section("data", "Data", data_table(run)),
            section("settings", "Settings", settings(run)),
            section("next", "Next", *command_lines(commands)),
        ]
    if files.out_of_reach:
        text = f"Files that the store of artifacts did not give, of: {', '.join(files.out_of_reach)}."
        parts.append(paragraph(text, "dim"))
    if budget.left_out:
        text = f"Pictures that are left out, for their size or since they cannot be read: {', '.join(budget.left_out)}."
        parts.append(paragraph(text, "dim"))
    return page(f"{run.name} ({run.experiment})", [part for part in parts if part], made_now())


def command_lines(commands: Mapping[str, str]) -> list[str]:
    """Commands to copy, each with what it does."""
    return [f"<p>To {escape(purpose)}:</p><pre>{escape(line)}</pre>" for purpose, line in commands.items()]


def moment(seconds: float) -> str:
    """A time of day, to the minute."""
    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def main_figures(run: Run, measurements: Sequence[Run], store: RunStore) -> list[Figure]:
    """What the run is judged by, and the same on test data."""
    metric = kept_for(run)
    if metric is None:
        return []
    test = f"test/{metric.partition('/')[2]}"
    return [*figures_of(run, metric, measurements, store), *measured_figures([test], measurements, store)]


def heading(run: Run, starts: tuple[Start, ...], measurements: Sequence[Run], store: RunStore) -> str:
    """The name, a sentence, and the numbers that matter."""
    kind = run.tags.get("model", run.parameters.get("model", "run"))
    what = run.parameters.get("model_facts.objectives") or run.parameters.get("model_facts.task") or ""
    sentence = f"{kind}{f' ({what})' if what else ''} {lineage_words(starts)}".rstrip()
    ended = f"{run.status.lower()} {moment(run.ended)}" if run.ended else run.status.lower()
    cost, facts = cost_of(run), {}
    for figure in main_figures(run, measurements, store)[:3]:
        at = f" at step {figure.step:,}" if figure.step is not None else ""
        facts[f"{figure.metric}{at}"] = shown_number(figure.value)
    if cost.minutes is not None:
        facts["minutes"] = shown_minutes(cost.minutes)
    if cost.tokens is not None:
        facts["tokens"] = shown_amount(cost.tokens)
    elif cost.samples is not None:
        facts["samples"] = shown_amount(cost.samples)
    if cost.petaflops is not None:
        facts["petaFLOPs"] = f"{cost.petaflops:.3g}"
    if cost.peak_share is not None:
        facts["of the machine's peak"] = f"{cost.peak_share:.0%}"
    if "model_facts.parameters" in run.parameters:
        facts["parameters"] = shown_amount(float(run.parameters["model_facts.parameters"]))
    return (
        f'<header id="top"><p class="dim">{escape(run.experiment)}</p><h1>{escape(run.name)}</h1>'
        f"{paragraph(sentence)}{paragraph(f'Begun {moment(run.started)}, {ended}; id {run.run_id}', 'dim')}"
        f"{tiles(facts)}</header>"
    )


def faults(run: Run, directory: Path | None) -> str:
    """How it ended if not well, and how often it went on; empty if there is nothing to say."""
    lines = []
    if run.deleted:
        lines.append("The run is deleted in its store: restore it on MLflow's page.")
    if run.status == "RUNNING":
        lines.append("It goes on, or was killed without a word: what is shown is what it had logged.")
    elif run.status != "FINISHED":
        stopped = "was stopped by a person or the system before its end"
        ended = {"FAILED": "failed", "KILLED": stopped}.get(run.status, f"is {run.status.lower()}")
        reason = f": {run.tags['failure']}" if "failure" in run.tags else ""
        lines.append(f"The run {ended}{reason}.")
    elif "failure" in run.tags:
        lines.append(f"It had failed before it went on: {run.tags['failure']}.")
    if resumptions := int(run.tags.get("resumed", "0")):
        lines.append(f"It was gone on with {'once' if resumptions == 1 else f'{resumptions} times'}.")
    changed = {key.removeprefix("resumed."): value for key, value in run.tags.items() if key.startswith("resumed.")}
    for name in (UNSENT_NAME, REFUSED_NAME):
        if directory is not None and (directory / name).exists():
            lines.append(f"Not all that it logged has reached the store ({name}): python -m lit_pretrain sync.")
    found = [paragraph(line, "bad") for line in lines]
    if changed:
        rows = [[key, run.parameters.get(key, "–"), value] for key, value in sorted(changed.items())]
        found.append(paragraph("Settings that were changed when it went on:"))
        found.append(table(("setting", "first", "later"), rows))
    return section("faults", "Faults and resumptions", *found)


def lineage_graph(run: Run, starts: tuple[Start, ...], measurements: Sequence[Run], store: RunStore) -> str:
    """What it started from, what measured it and what started from it, as a graph."""
    boxes: list[Box] = []

    def add_all(starts: tuple[Start, ...], indent: int) -> tuple[tuple[int, ...], int]:
        """Draw starts, two towers with room for their lines beside each other; their places, and the next's indent."""
        above = []
        for start in starts:
            place, indent = add(start, indent)
            above.append(place)
            indent += len(starts) > 1
        return tuple(above), indent

    def add(start: Start, indent: int) -> tuple[int, int]:
        """Draw a start beneath what it started from itself; the place of its box, and its indent."""
        above, indent = add_all(start.starts, indent)
        title = (f"{start.tower} encoder: " if start.tower else "") + start.name
        if start.run is not None:
            lines = box_lines(start.run, (), store, indent)
        elif start.name == SCRATCH:
            lines = ("random weights",)
        else:
            lines = ("a run that is gone" if start.gone else "public weights",)
        boxes.append(Box(shortened(title, max(12, 40 - 3 * indent)), lines, False, indent, above))
        return len(boxes) - 1, indent

    above, indent = add_all(starts, 0)
    lines = box_lines(run, measurements, store, indent)
    boxes.append(Box(shortened(run.name, max(12, 40 - 3 * indent)), lines, True, indent, above))
    place = len(boxes) - 1
    children = store.started_from(run.run_id)
    for child in children[:MOST_CHILDREN]:
        lines = box_lines(child, (), store, indent + 1)
        boxes.append(Box(shortened(child.name, max(12, 37 - 3 * indent)), lines, False, indent + 1, (place,)))
    if len(children) > MOST_CHILDREN:
        boxes.append(Box(f"and {len(children) - MOST_CHILDREN} more", (), False, indent + 1, (place,)))
    return graph(boxes, f"{run.name} {lineage_words(starts)}")


def box_lines(run: Run, measurements: Sequence[Run], store: RunStore, indent: int) -> tuple[str, ...]:
    """What a box says of a run beneath its name, as long as a box with this indent is wide."""
    most = max(16, 52 - 4 * indent)
    what = run.parameters.get("model_facts.objectives") or run.parameters.get("model_facts.task") or run.stage
    state = "" if run.status == "FINISHED" else f", {run.status.lower()}"
    lines = [shortened(f"{what}{state}", most)]
    for figure in main_figures(run, measurements, store)[:2]:
        at = f" at step {figure.step:,}" if figure.step is not None else ""
        lines.append(shortened(f"{figure.metric} {figure.value:.4g}{at}", most))
    return tuple(lines)


def figures_table(run: Run, measurements: Sequence[Run], store: RunStore) -> str:
    """The best of each validation metric, and all that was measured with its checkpoints, with how it was measured."""
    names = [name for name in metrics_of(run, ()) if f"{BEST}{name}" in run.metrics]
    found = [figure for name in names for figure in figures_of(run, name, (), store)]
    beside = [
        name
        for name in metrics_of(run, measurements)
        if name.startswith(("test/", "evaluate/")) or name.startswith("validation/") and name not in names
    ]
    found += measured_figures(beside, measurements, store)
    tables: dict[str, list[list[str]]] = {}
    runs = {one.run_id: one for one in (run, *measurements)}
    for figure in found:
        value = shown_number(figure.value) + (f" ± {figure.interval:.2g}" if figure.interval is not None else "")
        step = f"{figure.step:,}" if figure.step is not None else "–"
        where = protocol_words(figure.protocol).removeprefix(f"{figure.metric} on ")
        chance = chance_of(runs[figure.run_id], figure.metric)
        guessed = "–" if chance is None else shown_number(chance)
        tables.setdefault(where, []).append([figure.metric, value, step, guessed])
    headings = ("figure", "value", "step", "chance")
    return "".join(f"{paragraph(where, 'dim')}{table(headings, rows, [1, 2, 3])}" for where, rows in tables.items())


def curves(run: Run, store: RunStore) -> str:
    """Charts of everything that was logged in training and validation, over each of the axes."""
    tails: dict[str, list[str]] = {}
    for name in sorted(run.metrics):
        split, _, tail = name.partition("/")
        if split in ("train", "validation") and not DEPTH.match(name):
            tails.setdefault(tail, []).append(name)
    # The losses first, and what is validated before what is not.
    order = sorted(tails, key=lambda tail: (tail != "loss", f"validation/{tail}" not in tails[tail], tail))
    charts = {tail: tails[tail] for tail in order}
    if "learning_rate" in run.metrics:
        charts["learning rate"] = ["learning_rate"]
    # Dashed beside what was validated.
    trained = {names[0] for names in charts.values() if len(names) > 1}
    panels = {}
    for axis, total in axes_of([run]).items():
        drawn = []
        for tail, names in charts.items():
            lines = [
                Curve(
                    name.partition("/")[0], curve_over(run, name, total, store), int(name in trained), name in trained
                )
                for name in names
            ]
            drawn.append(chart(tail, lines, axis, named=len(lines) > 1))
        grid = '<div class="charts">{}</div>'
        more = details(f"{len(drawn) - MOST_CHARTS} more", grid.format("".join(drawn[MOST_CHARTS:])))
        shown = grid.format("".join(drawn[:MOST_CHARTS]))
        panels[f"over {axis}"] = shown + (more if len(drawn) > MOST_CHARTS else "")
    return switch("curves", panels) if charts else ""


def speed(run: Run, store: RunStore) -> str:
    """Rates over the steps, and the machine."""
    charts = [
        chart(name, [Curve(name, curve_over(run, metric, "", store))], "optimiser steps")
        for name, metric in SPEED.items()
        if metric in run.metrics
    ]
    rows = [
        [MACHINE.get(key, key.removeprefix("machine.")), value]
        for key, value in sorted(run.tags.items())
        if key.startswith("machine.") or key in ("precision", "devices")
    ]
    means = [
        [name, f"{shown_number(run.metrics[f'{metric}_mean'])} on average"]
        for name, metric in SPEED.items()
        if f"{metric}_mean" in run.metrics
    ]
    grid = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return grid + (table((), [*means, *rows]) if means or rows else "")


def depth(run: Run, measurements: Sequence[Run]) -> str:
    """Neighbours and linear probes over the blocks: of the last validation, and of evaluations."""
    found: dict[str, dict[int, float]] = {}
    chances: dict[str, float | None] = {}
    for one in (*measurements[::-1], run):
        for name, value in one.metrics.items():
            match = DEPTH.match(name)
            if match and not name.startswith(BEST) and not name.endswith("/interval"):
                kind = f"{match['before']}{match['after'] or ''}".removeprefix("evaluate/")
                found.setdefault(kind, {})[int(match["block"])] = value
                chances[kind] = chance_of(one, name)
    if not found:
        return ""
    curves = [
        Curve(name, sorted((float(block), value) for block, value in values.items()), place)
        for place, (name, values) in enumerate(sorted(found.items()))
    ]
    beside = {name: "–" if chance is None else f"{chance:.4g}" for name, chance in chances.items()}
    rows = [
        [name, block, f"{value:.4g}", beside[name]]
        for name, values in sorted(found.items())
        for block, value in sorted(values.items())
    ]
    drawn = chart("by block", curves, "block", named=True) if any(len(curve.points) > 1 for curve in curves) else ""
    return f'<div class="charts">{drawn}</div>{table(("features", "block", "value", "chance"), rows, [1, 2, 3])}'


def examples_of(directory: Path) -> list[str]:
    """Tables of what was filled in, each beneath its objective's name."""
    return [f"<h3>{escape(name)}</h3>{shown}" for name, shown in examples(directory).items()]


def measured(run: Run, directory: Path, budget: Budget) -> str:
    """What a test or an evaluation of the run's checkpoint has shown: by class, confused, mistaken, neighbours."""
    parts = []
    for name in ("classes", "mistakes"):
        columns, rows = read_table(directory / "report" / f"{name}.json")
        if rows:
            heading = "By class" if name == "classes" else "The worst mistakes"
            parts.append(f"<h3>{heading}</h3>{shown_table(columns, rows)}")
    parts[1:1] = [pictures(directory, folder, budget) for folder in ("report", "neighbors", "zero_shot")]
    checkpoint = Path(run.tags.get("source.checkpoint", "")).name
    title = f"{(run.stage or 'measured').capitalize()} of {moment(run.started)}"
    title += f", {checkpoint}" if checkpoint else ""
    return section(f"measured-{run.run_id[:8]}", title, *parts)


def data_table(run: Run) -> str:
    """What the data was."""
    facts = {
        key.removeprefix("data_facts.").replace("_", " "): value
        for key, value in run.parameters.items()
        if key.startswith("data_facts.")
    }
    return table((), [[key, shown_setting(value)] for key, value in facts.items()]) if facts else ""


def settings(run: Run) -> str:
    """All settings by section, shown when they are asked for, and how the run was started."""
    parts = []
    command = run.tags.get("mlflow.source.name")
    if command:
        parts.append(f"<p>Started by:</p><pre>{escape(command)}</pre>")
    code = [run.tags[key] for key in ("git.branch", "git.commit") if key in run.tags]
    dirty = ", with changes that were not committed" if run.tags.get("git.dirty") == "true" else ""
    versions = [
        f"{key.removeprefix('versions.')} {value}" for key, value in run.tags.items() if key.startswith("versions.")
    ]
    if code or versions:
        words = [f"Code: {' '.join(code)}{dirty}"] if code else []
        parts.append(paragraph("; ".join([*words, ", ".join(versions)]), "dim"))
    for name in (*SECTIONS, "model_facts"):
        rows = [
            [key.removeprefix(f"{name}."), shown_setting(value)]
            for key, value in sorted(run.parameters.items())
            if key.partition(".")[0] == name
        ]
        if rows:
            parts.append(details(f"{name.replace('_', ' ')} ({len(rows)})", table((), rows)))
    if run.seed:
        parts.append(paragraph(f"Seed {run.seed}"))
    return "\n".join(parts)
