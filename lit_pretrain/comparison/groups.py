"""Runs side by side: those with the same protocol ranked together, the seeds of a config in one row."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_pretrain.comparison.figures import (
    Cost,
    Figure,
    cost_of,
    figures_of,
    kept_for,
    mean_cost,
    measured_figures,
    metrics_of,
    test_metric,
)
from lit_pretrain.comparison.lineage import Start, ancestors, lineage_words, starts_of
from lit_pretrain.comparison.protocol import Protocol, why_not_comparable
from lit_pretrain.comparison.runs import Run, RunStore
from lit_pretrain.comparison.settings import START, differing, settings_of
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.measures.intervals import Mean, mean_of
from lit_pretrain.tracking.best import direction


@dataclass(frozen=True)
class Subject:
    """A run with all that is said of it.

    Attributes:
        run: The run.
        measurements: Runs that measured its checkpoints, the latest first.
        starts: What it started from.
        figure: What it is ranked by; null if it has no such figure.
        tests: The same figures on test data, and other figures beside.
        cost: Of its own training.
        whole_cost: With the trainings that it started from.
    """

    run: Run
    measurements: tuple[Run, ...]
    starts: tuple[Start, ...]
    figure: Figure | None
    tests: tuple[Figure, ...]
    cost: Cost
    whole_cost: Cost


@dataclass
class Row:
    """Runs that differ in nothing but their seeds.

    Attributes:
        subjects: One of each seed, the first begun first.
        repeated: Runs that are left out, since a later one has the same config and seed.
        settings: What they were trained with.
    """

    subjects: list[Subject]
    repeated: list[Run] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Their name; of several the part that all names begin with, if it says anything."""
        names = list(dict.fromkeys(subject.run.name for subject in self.subjects))
        if len(names) == 1:
            return names[0]
        common = names[0]
        while not all(name.startswith(common) for name in names):
            common = common[:-1]
        common = common.rstrip("-_. ")
        return f"{common}…" if len(common) >= 3 else names[0]

    @property
    def state(self) -> str:
        """How they ended, where not as they should."""
        status = self.subjects[0].run.status
        return "" if status == "FINISHED" else {"RUNNING": "going on"}.get(status, status.lower())

    @property
    def seeds(self) -> list[str]:
        """Their seeds."""
        return [subject.run.seed for subject in self.subjects]

    @property
    def lineage(self) -> str:
        """Where they come from, as the first one's."""
        return lineage_words(self.subjects[0].starts)

    @property
    def mean(self) -> Mean:
        """Of the figures that they are ranked by."""
        return mean_of([subject.figure.value for subject in self.subjects if subject.figure])

    @property
    def steps(self) -> list[int]:
        """Steps of these figures."""
        steps = (subject.figure.step for subject in self.subjects if subject.figure)
        return sorted({step for step in steps if step is not None})

    @property
    def cost(self) -> Cost:
        """Mean of their costs."""
        return mean_cost([subject.cost for subject in self.subjects])

    def tests(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[Figure]]:
        """Figures beside by metric and protocol."""
        found: dict[Any, list[Figure]] = {}
        for subject in self.subjects:
            for figure in subject.tests:
                found.setdefault((figure.metric, tuple(sorted(figure.protocol.items()))), []).append(figure)
        return found


@dataclass
class Group:
    """Runs whose figures can be compared, the best first.

    Attributes:
        metric: What they are ranked by.
        way: "max" or "min"; null if the metric's name does not tell, and nothing is ranked.
        protocol: What the figures were measured with.
        rows: Ranked.
        differing: Names of the settings that are not the same in all rows.
        why: Why these are not ranked with the first group's; empty for the first.
    """

    metric: str
    way: str | None
    protocol: Protocol
    rows: list[Row]
    differing: list[str] = field(default_factory=list)
    why: str = ""

    @property
    def commits(self) -> list[str]:
        """Commits of the code that the runs were trained with."""
        found = (subject.run.tags.get("git.commit", "") for row in self.rows for subject in row.subjects)
        return list(dict.fromkeys(commit for commit in found if commit))


@dataclass
class Comparison:
    """What is said of some runs.

    Attributes:
        groups: Of runs that can be compared, the largest first.
        without: Runs that have no figure, with what they have instead.
        store: Where they are.
    """

    groups: list[Group]
    without: list[Subject]
    store: RunStore


def compare(runs: Sequence[Run], store: RunStore, metric: str | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        runs: Which.
        store: Where they are.
        metric: What they are ranked by; null takes for each what its best checkpoint was kept for.

    Raises:
        UserError: If none of the runs has the figure, or any.
    """
    measurements = {run.run_id: tuple(store.measurements_of(run.run_id)) for run in runs}
    available = {run.run_id: metrics_of(run, measurements[run.run_id]) for run in runs}
    if metric is not None:
        metric = known_metric(metric, [name for names in available.values() for name in names])
    subjects = [
        subject
        for run in runs
        for subject in subjects_of(run, measurements[run.run_id], store, metric or kept_for(run))
    ]
    without = [subject for subject in subjects if subject.figure is None]
    if len(without) == len(subjects):
        shown = sorted({name for names in available.values() for name in names})[:6]
        has = f"give one of {', '.join(shown)} with --metric" if shown else "let one come to its first validation"
        raise UserError(
            f"None of these {len(runs)} runs has a figure of validation or test data to compare by: {has}."
            if len(runs) > 1
            else f"The run {runs[0].name} has no figure of validation or test data: {has}."
        )
    by_protocol: dict[tuple[tuple[str, str], ...], list[Subject]] = {}
    for subject in subjects:
        if subject.figure is not None:
            by_protocol.setdefault(tuple(sorted(subject.figure.protocol.items())), []).append(subject)
    groups = [group_of(found, store) for found in by_protocol.values()]
    groups.sort(key=lambda group: -sum(len(row.subjects) for row in group.rows))
    for group in groups[1:]:
        group.why = why_not_comparable(groups[0].protocol, group.protocol)
    return Comparison(groups, without, store)


def known_metric(metric: str, available: Sequence[str]) -> str:
    """The metric that is meant, which may be called without `validation/` and with `best/`.

    Raises:
        UserError: If no run has it.
    """
    name = metric.removeprefix("best/")
    for candidate in (name, f"validation/{name}", f"test/{name}", f"evaluate/{name}"):
        if candidate in available:
            return candidate
    counts = Counter(one for one in available if one.startswith(("validation/", "test/", "evaluate/")))
    tails = [one.partition("/")[2] for one in available]
    listed = ", ".join(one for one, _ in counts.most_common(6))
    raise UserError(
        f"None of these runs has the figure '{metric}'{nearest(name, [*available, *tails])}"
        + (f": they have {listed}." if listed else ": they have no figures of validation or test data.")
    )


def subjects_of(run: Run, measurements: tuple[Run, ...], store: RunStore, metric: str | None) -> list[Subject]:
    """A run with its figure, once for each protocol that it was measured by; those of tests and evaluations beside."""
    starts = starts_of(run, store)
    figures = figures_of(run, metric, measurements, store) if metric is not None else []
    beside = [test_metric(metric)] if metric is not None and not metric.startswith("test/") else []
    beside += [name for name in metrics_of(run, measurements) if name.startswith("evaluate/") and name != metric]
    tests = tuple(measured_figures(beside, measurements, store))
    cost = cost_of(run)
    former = {start.run.run_id: cost_of(start.run) for start in ancestors(starts) if start.run is not None}
    subject = Subject(run, measurements, starts, None, tests, cost, total_cost([cost, *former.values()]))
    return [replace(subject, figure=figure) for figure in figures] or [subject]


def total_cost(costs: Sequence[Cost]) -> Cost:
    """The sum of some costs; null for what one of them does not tell."""

    def total(name: str) -> float | None:
        values = [getattr(cost, name) for cost in costs]
        return None if None in values else sum(values)

    return Cost(*(total(name) for name in ("minutes", "samples", "tokens", "petaflops")))


def config_of(run: Run, store: RunStore) -> tuple[Any, ...]:
    """What a run was trained with but for its seeds, those of the runs that it started from included."""
    # One that is off may be absent in an earlier build's.
    settings = {
        key: value
        for key, value in settings_of(run).items()
        if key.rpartition(".")[2] != START and value not in ("None", "False")
    }
    return (tuple(sorted(settings.items())), *(start_config(start, store) for start in starts_of(run, store)))


def start_config(start: Start, store: RunStore) -> tuple[Any, ...]:
    """What a start was, but for its seeds."""
    return start.tower, start.step, config_of(start.run, store) if start.run is not None else start.name


def all_seeds(subject: Subject) -> tuple[str, ...]:
    """The seeds of a run and of those that it started from."""
    former = (start.run.seed for start in ancestors(subject.starts) if start.run is not None)
    return subject.run.seed, *former


def group_of(subjects: Sequence[Subject], store: RunStore) -> Group:
    """Rank runs whose figures are comparable."""
    first = subjects[0].figure
    assert first is not None
    by_config: dict[Any, list[Subject]] = {}
    for subject in subjects:
        finished = subject.run.status == "FINISHED" and subject.run.seed != ""
        # What was stopped half-way is not the same training.
        key = config_of(subject.run, store) if finished else subject.run.run_id
        by_config.setdefault(key, []).append(subject)
    rows = []
    for found in by_config.values():
        by_seed: dict[tuple[str, ...], Subject] = {}
        repeated = []
        for subject in sorted(found, key=lambda subject: subject.run.started):
            former = by_seed.pop(all_seeds(subject), None)
            repeated += [former.run] if former is not None else []
            by_seed[all_seeds(subject)] = subject
        rows.append(Row(list(by_seed.values()), repeated, settings_of(found[0].run)))
    way = direction(first.metric)

    def place(row: Row) -> float:
        value = row.mean.value
        return math.inf if math.isnan(value) else -value if way == "max" else value

    if way is not None:
        rows.sort(key=place)
    return Group(first.metric, way, first.protocol, rows, differing([row.settings for row in rows]))
