"""What an evaluation found: a table for a person, and a run of its own in MLflow."""

import time
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from lit_pretrain.comparison.description import describe
from lit_pretrain.evaluation.preparation import EvaluationData
from lit_pretrain.evaluation.protocols import NEIGHBORS, TEMPERATURE, Setting
from lit_pretrain.evaluation.subjects import Subject
from lit_pretrain.tracking.data_inputs import data_inputs
from lit_pretrain.tracking.machine import git_state
from lit_pretrain.tracking.mlflow_logger import MLflowLogger

EXPERIMENT = "evaluation"
Row = dict[str, Any]


def protocol_lines(setting: Setting) -> list[str]:
    """How the numbers were made, a line for each protocol."""
    if setting.classes is None:
        lines = {
            "knn": f"knn: mean of the {NEIGHBORS} nearest by cosine",
            "linear": "linear: ridge regression on standardised features, alpha = 1",
        }
    else:
        chosen = setting.regularization == "chosen"
        strength = "C by cross-validation" if chosen else f"C = {setting.regularization:g}"
        lines = {
            "knn": f"knn: the {NEIGHBORS} nearest by cosine vote with exp(cosine / {TEMPERATURE})",
            "linear": f"linear: logistic regression on standardised features, {strength}",
        }
    return [lines[protocol] for protocol in setting.protocols]


def table_of(rows: Sequence[Row], setting: Setting) -> Table:
    """The rows as a table, a column for each protocol's metrics; what is the same in all of them is said once."""
    first = rows[0]
    inputs, seeds = {row["resolution"] for row in rows}, sorted({seed for row in rows for seed in row["seeds"]})
    facts = [f"{first['stage_samples']:,} samples of {first['stage']}", f"pooling {setting.pooling}"]
    facts += [f"input {first['resolution']}"] if len(inputs) == 1 else []
    facts += [f"seeds {' '.join(map(str, seeds))}"] if seeds else ["no draws"]
    caption = "\n".join(protocol_lines(setting))
    if setting.classes is not None:
        caption += f"\nchance: {first['chance']:.2%} by telling always the most frequent class".replace("%", " %")
    if any(row["interval"] is not None for row in rows):
        caption += "\n±: 95 % confidence interval of the mean over the seeds, by Student's t"
    table = Table(
        title=f"Frozen features on {', '.join([*facts, first['precision']])}",
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("checkpoint", overflow="fold")
    named = ["step", *(["input"] if len(inputs) > 1 else []), "labels", "layer"]
    figures = list(dict.fromkeys((row["protocol"], row["metric"]) for row in rows))
    for heading in [*named, *(f"{protocol} {metric}" for protocol, metric in figures)]:
        table.add_column(heading, justify="right")
    lines: dict[tuple[Any, ...], dict[tuple[str, str], str]] = {}
    for row in rows:
        step = "–" if row["step"] is None else f"{row['step']:,}"
        line = [row["checkpoint"], step, *([row["resolution"]] if len(inputs) > 1 else [])]
        line += [f"{row['train_samples']:,}", f"{row['layer']} of {row['layers']}"]
        # Two checkpoints may have the same name and step.
        lines.setdefault((row["source"], *line), {})[row["protocol"], row["metric"]] = shown_value(row)
    for (_, *line), values in lines.items():
        table.add_row(*line, *(values.get(figure, "") for figure in figures))
    return table


def shown_value(row: Row) -> str:
    """A number with its interval, shares in per cent."""
    if row["mean"] is None:
        return "undefined"
    factor, form, unit = (100, "{:.2f}", " %") if row["metric"] == "accuracy" else (1, "{:.4f}", "")
    interval = "" if row["interval"] is None else " ± " + form.format(factor * row["interval"])
    return form.format(factor * row["mean"]) + interval + unit


def metrics_of(rows: Sequence[Row]) -> dict[str, float]:
    """Names and values for MLflow, the number of labels being part of the name where there are several."""
    several = len({row["train_samples"] for row in rows}) > 1
    metrics = {}
    for row in rows:
        if row["mean"] is None:
            continue
        name = f"evaluate/{row['protocol']}_{row['metric']}/block_{row['layer']}"
        name += f"/{row['train_samples']}_labels" if several else ""
        metrics[name] = row["mean"]
        if row["interval"] is not None:
            metrics[f"{name}/interval"] = row["interval"]
    return metrics


def open_run(subject: Subject) -> MLflowLogger:
    """A run of its own for a subject, which names where the encoder comes from."""
    logger = MLflowLogger(EXPERIMENT, tags={**subject.tags, "fresh_weights": str(subject.fresh).lower()})
    logger.suggest_name(f"evaluate-{subject.name}".replace(" ", "-"))
    return logger


def log_data(logger: MLflowLogger, data: EvaluationData, learns: bool) -> None:
    """Log the data as the run's inputs.

    Args:
        logger: From `open_run`.
        data: What is measured on.
        learns: Whether a probe is fitted on the training part.
    """
    measured = {"train": "training", "all": "training"}.get(data.test.name, data.test.name)
    contexts = dict.fromkeys((*(("training",) if learns else ()), measured))
    logger.log_inputs(data_inputs(data.data_module.describe(), contexts))


def close_run(logger: MLflowLogger, subject: Subject) -> None:
    """Describe the run, give its figures to the checkpoint's model, and end it."""
    source = subject.tags.get("source.run_id")
    if source is not None and not subject.fresh and subject.step is not None:
        logger.log_measurement(source, subject.tags["source.checkpoint"], subject.step)
    # The deepest block first: the last one logged.
    names = [name for name in logger.latest if name.startswith("evaluate/") and not name.endswith("/interval")]
    logger.show_columns(names[::-1][:3])
    describe(logger, time.time(), "FINISHED", ())
    logger.finalize("success")


def log_rows(
    logger: MLflowLogger, subject: Subject, rows: Sequence[Row], setting: Setting, data: EvaluationData
) -> None:
    """Log a subject's numbers as metrics at its checkpoint's step, and the rows as a table.

    Args:
        logger: From `open_run`.
        subject: What was measured.
        rows: Its rows.
        setting: How.
        data: On what.
    """
    logger.set_tags({"stage": "evaluate", "model": type(subject.encoder).__name__, **git_state()})
    logger.log_hyperparams(
        {
            "protocols": "; ".join(protocol_lines(setting)),
            "pooling": setting.pooling,
            "stage": data.test.name,
            "stage_samples": len(data.test),
            "seeds": " ".join(map(str, setting.seeds)),
            "resolution": rows[0]["resolution"],
            **data.data_module.describe(),
        }
    )
    metrics = metrics_of(rows)
    logger.log_metrics(metrics, subject.step or 0)
    logger.log_chance({name: rows[0]["chance"] for name in metrics if not name.endswith("/interval")})
    flat_rows = [{**row, "seeds": str(row["seeds"]), "values": str(row["values"])} for row in rows]
    logger.log_table(flat_rows, "evaluation.json")
