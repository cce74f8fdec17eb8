"""A run's figures over steps, over what it has seen by then, and over the operations that this took."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from lit_pretrain.comparison.figures import TOTAL
from lit_pretrain.comparison.runs import Run, RunStore

Points = list[tuple[float, float]]

STEPS = "optimiser steps"
OPERATIONS = "petaFLOPs"


def axes_of(runs: Sequence[Run]) -> dict[str, str]:
    """What curves can be drawn over: names of axes, with the total that each is (none for steps)."""
    texts = any(f"{TOTAL}tokens" in run.metrics and run.fact("stored_size") is None for run in runs)
    seen = {"tokens": f"{TOTAL}tokens"} if texts else {"samples": f"{TOTAL}samples"}
    axes = {**seen, OPERATIONS: f"{TOTAL}petaflops"}
    return {STEPS: "", **{name: total for name, total in axes.items() if any(total in run.metrics for run in runs)}}


def curve_over(run: Run, metric: str, total: str, store: RunStore) -> Points:
    """A metric's values over a total, such as all tokens that were seen by then.

    Args:
        run: Whose.
        metric: Which.
        total: From `axes_of`; empty for steps.
        store: Where it is.

    Returns:
        (x, y) by rising x; none where the run has not logged the total.
    """
    points = store.history(run, metric)
    if not total:
        return [(float(step), value) for step, value in points]
    amount = amount_by_step(store.history(run, total))
    return [(amount(step), value) for step, value in points] if amount is not None else []


def amount_by_step(totals: Sequence[tuple[int, float]]) -> Callable[[float], float] | None:
    """What was counted by a step: linear between the steps at which it was logged, nothing at step 0.

    Runs of earlier versions have logged their totals at the end alone, which makes a straight line. Null without any.
    """
    known = [(0, 0.0), *((step, total) for step, total in totals if step > 0)]
    if len(known) < 2:
        return None
    steps = [step for step, _ in known]

    def amount(step: float) -> float:
        place = min(max(1, bisect_left(steps, step)), len(known) - 1)
        (before, low), (after, high) = known[place - 1], known[place]
        return low + (high - low) * (step - before) / (after - before)

    return amount
