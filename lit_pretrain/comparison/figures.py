"""Figures of runs: the best value of a metric with its step and protocol, and what a training has cost."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_pretrain.comparison.protocol import Protocol, protocol_of
from lit_pretrain.comparison.runs import MEASURING, Run, RunStore
from lit_pretrain.tracking.best import direction, is_better
from lit_pretrain.tracking.store import CHANCE_TAG

BEST = "best/"
TOTAL = "throughput/total_"
# What a task is judged by, where a run does not say what its best checkpoint was kept for.
JUDGED_BY = ("accuracy", "spearman", "pearson", "f1", "average_precision", "r2")


@dataclass(frozen=True)
class Figure:
    """A value of a metric.

    Attributes:
        metric: Its name without `best/`.
        value: Of a training's metrics the best one, of a measurement's what was measured.
        step: Optimiser step of the weights.
        protocol: What it was measured with.
        run_id: The run that has logged it.
        interval: Half of its 95 % interval over the draws of a measurement; null if it has none.
    """

    metric: str
    value: float
    step: int | None
    protocol: Protocol
    run_id: str
    interval: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a training has cost, as far as it was logged.

    Attributes:
        minutes: Of training, without validations; of a run that has not logged them, from its beginning to its end.
        samples: How many were seen, repetitions counted.
        tokens: Of texts; null of pictures.
        petaflops: Floating-point operations in 10^15.
        peak_share: Mean share of the machine's measured peak.
    """

    minutes: float | None = None
    samples: float | None = None
    tokens: float | None = None
    petaflops: float | None = None
    peak_share: float | None = None


def kept_for(run: Run) -> str | None:
    """The metric that a run's best checkpoint is kept for; null if it does not tell."""
    name, equals, _ = run.tags.get("checkpoint.best_score", "").partition(" = ")
    if equals and name in run.metrics:
        return name
    # The tag is written when a training ends.
    validated = [key.removeprefix(BEST) for key in run.metrics if key.startswith(f"{BEST}validation/")]
    judged = [f"validation/{name}" for name in JUDGED_BY] if "model_facts.task" in run.parameters else []
    return next((name for name in [*judged, "validation/loss", *sorted(validated)] if name in validated), None)


def figures_of(run: Run, metric: str, measurements: Sequence[Run], store: RunStore) -> list[Figure]:
    """The figures of a metric: a training's own, or one for each protocol that its checkpoints were measured by.

    Args:
        run: Whose.
        metric: Its name without `best/`.
        measurements: Runs that measured its checkpoints, the latest first. Of several with the same protocol the latest
            counts and not the best one, which would be chosen by what it is to be judged by.
        store: Where they are.

    Returns:
        The figures; none if it was never logged.
    """
    best = f"{BEST}{metric}"
    if best in run.metrics:
        step = store.history(run, best)[-1][0]
        return [Figure(metric, run.metrics[best], step, protocol_of(run, metric), run.run_id)]
    if metric in run.metrics and run.stage not in MEASURING:
        way = direction(metric)
        finite = [(step, value) for step, value in store.history(run, metric) if math.isfinite(value)]
        chosen: tuple[int | None, float] = finite[-1] if finite else (None, math.nan)
        if way is not None:
            for point in finite:
                chosen = point if is_better(point[1], chosen[1], way) else chosen
        return [Figure(metric, chosen[1], chosen[0], protocol_of(run, metric), run.run_id)]
    return measured_figures([metric], [run, *measurements], store)


def measured_figure(measured: Run, metric: str, store: RunStore) -> Figure:
    """A figure as a run that measured a checkpoint has logged it."""
    step = store.history(measured, metric)[-1][0]
    interval = measured.metrics.get(f"{metric}/interval")
    return Figure(metric, measured.metrics[metric], step, protocol_of(measured, metric), measured.run_id, interval)


def measured_figures(metrics: Sequence[str], measurements: Sequence[Run], store: RunStore) -> list[Figure]:
    """Figures of some metrics, of each protocol the latest one measured."""
    found: dict[tuple[str, str], Figure] = {}
    for measured in measurements:
        for metric in metrics:
            if metric in measured.metrics:
                figure = measured_figure(measured, metric, store)
                found.setdefault((metric, str(sorted(figure.protocol.items()))), figure)
    return list(found.values())


def metrics_of(run: Run, measurements: Sequence[Run]) -> list[str]:
    """Names of all figures that a run has, without `best/` and intervals."""
    names = [name for one in (run, *measurements) for name in one.metrics if not name.endswith("/interval")]
    return list(dict.fromkeys(name.removeprefix(BEST) for name in names))


def test_metric(metric: str) -> str:
    """What a validation's metric is called in a test."""
    return f"test/{metric.partition('/')[2]}"


def chance_of(run: Run, metric: str) -> float | None:
    """What a metric of a run is without learning; null if that is not known.

    Args:
        run: The one that has logged it.
        metric: Its name without `best/`.
    """
    try:
        known = json.loads(run.tags.get(CHANCE_TAG, "{}"))
    except ValueError:
        return None
    value = known.get(metric, known.get(metric.partition("/")[2])) if isinstance(known, dict) else None
    return float(value) if isinstance(value, int | float) else None


def cost_of(run: Run) -> Cost:
    """What a run has cost."""
    hours, metrics = run.metrics.get(f"{TOTAL}hours"), run.metrics
    minutes = hours * 60 if hours is not None else (run.ended - run.started) / 60 if run.ended else None
    return Cost(
        minutes,
        metrics.get(f"{TOTAL}samples"),
        metrics.get(f"{TOTAL}tokens") if run.fact("stored_size") is None else None,
        metrics.get(f"{TOTAL}petaflops"),
        metrics.get("throughput/share_of_peak_mean"),
    )


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean over some runs, of each number over those that have it."""

    def mean(name: str) -> float | None:
        values = [value for cost in costs if (value := getattr(cost, name)) is not None]
        return sum(values) / len(values) if values else None

    return Cost(*(mean(name) for name in ("minutes", "samples", "tokens", "petaflops", "peak_share")))
