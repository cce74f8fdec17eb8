"""What a sweep shows: the best trials, what mattered, and the best config as a file that `fit` takes."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_pretrain.errors import counted
from lit_pretrain.studies.scheduler import duration
from lit_pretrain.studies.sweep import Sweep, brief
from lit_pretrain.studies.sweep_space import Parameter
from lit_pretrain.studies.tables import Report, Row, table
from lit_pretrain.studies.trials import pruned_at
from lit_pretrain.tracking.paths import shown_path, write_atomically, write_csv

BEST_NAME = "best.yaml"
SHOWN = 10
# Optuna's states of a trial in words.
WORDS = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "waiting"}
# Parameters of a contour plot, the most important ones: each is drawn against each.
CONTOURS = 4
# A best value in this share of its range beside an end is told.
EDGE = 0.05


def report(sweep: Sweep, trials: Sequence[Any], study: Any, directory: Path) -> Report:
    """Everything that has come of the sweep so far.

    Args:
        sweep: Which.
        trials: As Optuna's store has them.
        study: Optuna's, for its plots.
        directory: Where the files go.
    """
    rows = [row_of(sweep, trial) for trial in trials]
    best = best_first(sweep, trials)
    files = [write_csv(directory / "trials.csv", rows)] if rows else []
    notes = [counts(trials)]
    if best:
        files.append(write_best(sweep, best[0], directory))
        pictures, why_none = draw(sweep, study, best, directory)
        files += pictures
        notes += [*edges(sweep, best[0]), *why_none, *last_words(sweep, best, directory)]
    failed = [row for row in rows if row["state"] == "fail"]
    notes += [f"trial {row['trial']}: failed: {row['reason'] or 'its process was ended'}" for row in failed]
    curve = [(trial.number, float(trial.value)) for trial in sorted(best, key=lambda trial: trial.number)]
    return Report(rows, [table_of(sweep, best)] if best else [], notes, files, {sweep.settings.metric: curve}, [])


def row_of(sweep: Sweep, trial: Any) -> Row:
    """A trial with everything that is known of it."""
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        sweep.settings.metric: trial.value,
        **{parameter.key: trial.params.get(parameter.key) for parameter in sweep.parameters},
        "steps": trial.last_step,
        "seconds": trial.user_attrs.get("seconds"),
        "run_id": trial.user_attrs.get("run_id", ""),
        "reason": trial.user_attrs.get("reason", ""),
    }


def best_first(sweep: Sweep, trials: Sequence[Any]) -> list[Any]:
    """The trials that came to their end, the best first."""
    done = [trial for trial in trials if trial.state.name == "COMPLETE" and math.isfinite(trial.value)]
    return sorted(done, key=lambda trial: -trial.value if sweep.settings.maximizes else trial.value)


def table_of(sweep: Sweep, best: Sequence[Any]) -> Any:
    """The best trials for a person."""
    headings = [("trial", "right"), (sweep.settings.metric, "right")]
    headings += [(one.name.replace("_", " "), "right") for one in sweep.parameters]
    headings += [("steps", "right"), ("time", "right")]
    lines = []
    for trial in best[:SHOWN]:
        seconds = trial.user_attrs.get("seconds")
        values = [brief(trial.params[one.key]) for one in sweep.parameters]
        steps, time = f"{trial.last_step or 0:,}", "-" if seconds is None else duration(seconds)
        lines.append([str(trial.number), f"{trial.value:.4g}", *values, steps, time])
    more = len(best) - SHOWN
    return table(f"{sweep.settings.name}: the best first", headings, lines, f"and {more} more" if more > 0 else "")


def counts(trials: Sequence[Any]) -> str:
    """How many trials ended how."""
    states = [trial.state.name for trial in trials]
    parts = [f"{states.count(state)} {word}" for state, word in WORDS.items() if state in states]
    steps = [step for trial in trials if (step := pruned_at(trial)) is not None]
    whole = [trial.last_step or 0 for trial in trials if trial.state.name == "COMPLETE"]
    saved = f"; pruning saved {len(steps) * max(whole) - sum(steps):,} steps" if steps and whole else ""
    return f"{counted(len(trials), 'trial')}: {', '.join(parts) or 'none begun'}{saved}."


def edges(sweep: Sweep, best: Any) -> list[str]:
    """Parameters whose best value lies at an end of its range, beyond which a better one may lie."""
    found = []
    for parameter in sweep.parameters:
        if parameter.values.choices:
            continue
        low, high, value = (float(end or 0) for end in (*limits(parameter), best.params[parameter.key]))
        if parameter.values.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        if share <= EDGE or share >= 1 - EDGE:
            end = "lower" if share <= EDGE else "upper"
            found.append(
                f"{parameter.key}: the best value, {brief(best.params[parameter.key])}, is at the {end} end of its "
                "range; a better one may lie beyond."
            )
    return found


def limits(parameter: Parameter) -> tuple[Any, Any]:
    """The ends of a range of numbers."""
    return parameter.values.low, parameter.values.high


def last_words(sweep: Sweep, best: Sequence[Any], directory: Path) -> list[str]:
    """What the best figure is worth, and how to train it."""
    metric, value = sweep.settings.metric, f"{best[0].value:.4g}"
    return [
        f"{metric} {value} is the best of {counted(len(best), 'trial')} on the data that chose it, and so flatters it: "
        "measure it on test data, or with other seeds.",
        f"Train the best: python -m lit_pretrain fit --config {shown_path(directory / BEST_NAME)}",
    ]


def write_best(sweep: Sweep, best: Any, directory: Path) -> Path:
    """Write the config of the best trial, every setting with its value, with the logger of the config it came from."""
    settings = sweep.settings
    header = [
        f"The best of the sweep {settings.name}: trial {best.number}, {settings.metric} {best.value:.6g} on the data",
        "that chose it, with",
        *(f"  {key}: {brief(value)}" for key, value in best.params.items()),
        "",
        f"  python -m lit_pretrain fit --config {shown_path(directory / BEST_NAME)}",
    ]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    config = sweep.cell(best.number, best.params).config
    path = directory / BEST_NAME
    write_atomically(path, comment + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def draw(sweep: Sweep, study: Any, best: Sequence[Any], directory: Path) -> tuple[list[Path], list[str]]:
    """Draw how the search went, which parameters mattered, and how the two most important of them go together.

    Returns:
        The files, and why there are no more.
    """
    varied = [one.key for one in sweep.parameters if len({str(trial.params[one.key]) for trial in best}) > 1]
    if len(best) < 2 or len({trial.value for trial in best}) < 2 or not varied:
        return [], ["There are no figures until two trials with other values have finished."]
    import matplotlib.pyplot as pyplot
    import optuna
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    metric, names = sweep.settings.metric, {one.key: one.name.replace("_", " ") for one in sweep.parameters}
    before = pyplot.get_backend()
    # No window, whatever screen there is.
    pyplot.switch_backend("Agg")
    try:
        with warnings.catch_warnings(), pyplot.rc_context({"figure.constrained_layout.use": True, "font.size": 9}):
            warnings.simplefilter("ignore")
            importance = optuna.importance.get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied
            )
            leading = list(importance)[:CONTOURS]
            figures: dict[str, Callable[[], Any]] = {
                "history.png": lambda: plots.plot_optimization_history(study, target_name=metric),
                "importance.png": lambda: plots.plot_param_importances(
                    study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied, target_name=metric
                ),
                "slices.png": lambda: plots.plot_slice(study, params=leading, target_name=metric),
            }
            if len(leading) > 1:
                figures["contours.png"] = lambda: plots.plot_contour(study, params=leading, target_name=metric)
            return [save(make(), names, directory / name, pyplot) for name, make in figures.items()], []
    finally:
        pyplot.switch_backend(before)


def save(axes: Any, names: dict[str, str], path: Path, pyplot: Any) -> Path:
    """Save one of Optuna's figures with short names, and large enough for what it holds."""
    import numpy
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    grid = numpy.atleast_2d(axes)
    figure = grid.flat[0].figure
    rows, columns = grid.shape
    figure.set_size_inches(max(6.4, 3.4 * columns), max(4.4, 2.8 * rows))
    for one in grid.flat:
        if (legend := one.get_legend()) is not None:
            # It names the metric again, which the axes do.
            legend.remove()
        for axis, scale, ends in (
            (one.xaxis, one.get_xscale(), one.get_xlim()),
            (one.yaxis, one.get_yscale(), one.get_ylim()),
        ):
            if scale == "log":
                # Its own labels run into each other within a decade.
                ratio = ends[1] / ends[0]
                subs = (1, 3) if ratio > 15 else (1, 2, 5)
                axis.set_major_locator(LogLocator(subs=subs) if ratio > 5 else MaxNLocator(3))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        one.set_xlabel(names.get(one.get_xlabel(), one.get_xlabel()))
        one.set_ylabel(names.get(one.get_ylabel(), one.get_ylabel()))
        labels = [label.get_text() for label in one.get_yticklabels()]
        if any(label in names for label in labels):
            one.set_yticks(one.get_yticks(), [names.get(label, label) for label in labels])
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
