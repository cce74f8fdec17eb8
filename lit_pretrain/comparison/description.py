"""A run in a few lines of Markdown, for MLflow's page of it: what, on what, from where, result, what to do next."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.comparison.figures import chance_of, cost_of, kept_for
from lit_pretrain.comparison.lineage import Start, lineage_words, starts_of
from lit_pretrain.comparison.next_commands import PROGRAM, next_commands, reference_of
from lit_pretrain.comparison.runs import MEASURING, Run, RunStore
from lit_pretrain.comparison.table import shown_amount, shown_minutes, shown_number
from lit_pretrain.tracking.data_inputs import DataInput
from lit_pretrain.tracking.find import list_runs

if TYPE_CHECKING:
    from lit_pretrain.tracking.mlflow_logger import MLflowLogger

# How many of each are told; the rest is on the page.
FIGURES, COMMANDS = 6, 4


def description(
    run: Run,
    inputs: Sequence[DataInput],
    lineage: str,
    commands: Mapping[str, str],
    steps: Mapping[str, int] | None = None,
) -> str:
    """Describe a run, whether it goes on or has ended.

    Args:
        run: Which; of its metrics the last values.
        inputs: Its data.
        lineage: Where its weights come from, in words.
        commands: What a person would type next, by what it does.
        steps: Optimiser steps of metrics, as far as they are known.
    """
    lines = [f"**{what(run)}**", ""]
    lines += [f"- **Data:** {line}" for line in on_what(inputs)]
    if lineage:
        lines.append(f"- **Weights:** {lineage}")
    lines += [f"- **Result:** {line}" for line in results(run, steps or {})]
    if run.status == "FAILED" and "failure" in run.tags:
        lines.append(f"- **Failed:** {run.tags['failure']}")
    if run.status == "KILLED":
        lines.append("- **Stopped** by a person or the system before its end")
    shown = list(commands.items())[:COMMANDS]
    if shown:
        lines += ["", "**Next**", "", "```bash"]
        lines += [line for purpose, command in shown for line in (f"# {purpose}", command)]
        lines.append("```")
    return "\n".join(lines)


def what(run: Run) -> str:
    """What is trained or measured."""
    kind = run.tags.get("model", run.parameters.get("model", "run"))
    task = run.parameters.get("model_facts.objectives") or run.parameters.get("model_facts.task") or ""
    words = f"{kind}{f' ({task})' if task else ''}"
    if (number := run.parameters.get("model_facts.parameters")) is not None:
        words += f", {shown_amount(float(number))} parameters"
    if run.stage in MEASURING:
        words = f"{run.stage.capitalize()} of {words}"
    return words


def on_what(inputs: Sequence[DataInput]) -> list[str]:
    """The data, each source on a line."""
    found: dict[str, list[str]] = {}
    for one in inputs:
        source, _, part = one["name"].rpartition(":")
        name, _, size = part.partition("[")
        number = f"{int(size.rstrip(']')):,} for " if size else ""
        found.setdefault(f"{source} (fingerprint {one['digest'][:8]})", []).append(f"{number}{name}")
    return [f"{source}: {', '.join(parts)}" for source, parts in found.items()]


def results(run: Run, steps: Mapping[str, int]) -> list[str]:
    """The figures that matter, and what they have cost; nothing before there is any."""
    lines = []
    if run.stage in MEASURING:
        # Figures of the whole first: those of classes, blocks and intervals have longer names.
        names = [name for name in run.metrics if name.startswith(("validation/", "test/", "evaluate/"))]
        names = [name for name in names if not name.endswith("/interval")]
        told = sorted(names, key=lambda name: (name.count("/"), name))[:FIGURES]
    else:
        metric = kept_for(run)
        told = [f"best/{metric}"] if metric is not None and f"best/{metric}" in run.metrics else []
    for name in told:
        at = f" at step {steps[name]:,}" if name in steps else ""
        best = " (best)" if name.startswith("best/") else ""
        chance = chance_of(run, name.removeprefix("best/"))
        beside = f" (chance {shown_number(chance)})" if chance is not None else ""
        lines.append(f"{name.removeprefix('best/')} {shown_number(run.metrics[name])}{at}{best}{beside}")
    cost = cost_of(run)
    if run.stage not in MEASURING and lines and cost.minutes is not None:
        seen = f", {shown_amount(cost.tokens)} tokens" if cost.tokens is not None else ""
        seen = seen or (f", {shown_amount(cost.samples)} samples" if cost.samples is not None else "")
        lines[-1] += f"; {shown_minutes(cost.minutes)} minutes{seen}"
    return lines


def describe(logger: "MLflowLogger", began: float, status: str, starts: tuple[Start, ...] | None = None) -> None:
    """Write the description of a logger's run, from what it has logged itself.

    Args:
        logger: Its.
        began: When, in seconds since 1970.
        status: As the run will end, or RUNNING.
        starts: What its weights come from; null asks the store.
    """
    run = run_of(logger, began, status)
    starts = starts_here(logger) if starts is None else starts
    records = list_runs(logger.runs_directory)
    former = next((start.run for start in starts if start.run is not None), None)
    lineage, reference = lineage_words(starts), reference_of(run, records)
    if status == "RUNNING":
        commands = {"see how it is doing": f"{PROGRAM} report {reference}"}
        if run.stage not in MEASURING:
            commands["go on with it, should it be stopped"] = f"{PROGRAM} fit --ckpt_path {reference}"
    elif run.stage in MEASURING:
        commands = {"put it beside others": f"{PROGRAM} compare {reference}"}
    else:
        former_reference = reference_of(former, records) if former is not None else None
        commands = next_commands(run, reference, former_reference)
    if run.stage in MEASURING and "source.checkpoint" in run.tags:
        source = next((record.run_name for record in records if record.run_id == run.tags.get("source.run_id")), None)
        step = f", step {max(logger.steps.values()):,}" if logger.steps else ""
        lineage = f"{source or Path(run.tags['source.checkpoint']).name}{step}"
    logger.log_description(description(run, logger.inputs, lineage, commands, logger.steps))


def run_of(logger: "MLflowLogger", began: float, status: str) -> Run:
    """A logger's run as far as it has logged it itself: the store may be away, and is always a little behind."""
    return Run(
        run_id=logger.run_id or "",
        name=logger.run_name or "",
        experiment=logger.run_directory.parent.name,
        status=status,
        started=began,
        ended=None if status == "RUNNING" else time.time(),
        deleted=False,
        parameters=dict(logger.parameters),
        tags=dict(logger.sent_tags),
        metrics=dict(logger.latest),
    )


def starts_here(logger: "MLflowLogger") -> tuple[Start, ...]:
    """What the run's weights come from, over all trainings before it that the store can tell of."""
    run = run_of(logger, time.time(), "RUNNING")
    try:
        return starts_of(run, RunStore(logger.experiment))
    except Exception:  # the store is away, or has lost something: the description is what it can be
        return ()
