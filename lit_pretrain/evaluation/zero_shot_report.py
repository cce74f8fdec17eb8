"""What zero-shot classification found: a table for a person with chance beside it, rows, and a run in MLflow."""

from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table

from lit_pretrain.evaluation.preparation import EvaluationData
from lit_pretrain.evaluation.protocols import Setting
from lit_pretrain.evaluation.subjects import Subject
from lit_pretrain.evaluation.task_figures import confusion_figure
from lit_pretrain.evaluation.task_report import class_rows
from lit_pretrain.evaluation.zero_shot import Prompts, ZeroShotResult
from lit_pretrain.tracking.machine import git_state
from lit_pretrain.tracking.mlflow_logger import MLflowLogger

Row = dict[str, Any]
# Above so many classes only the worst are printed.
MOST_PRINTED = 40


def zero_shot_rows(
    subject: Subject, result: ZeroShotResult, prompts: Prompts, data: EvaluationData, setting: Setting, resolution: str
) -> list[Row]:
    """All that must be said, for tables and JSON: a row for each metric, then one for each class.

    Args:
        subject: What was measured.
        result: What came of it.
        prompts: What was said of the classes.
        data: The data.
        setting: Precision.
        resolution: Size of the pictures.
    """
    low, high = result.interval
    common = {"checkpoint": subject.name, "step": subject.step, "protocol": "zero-shot"}
    whole = {
        "resolution": resolution,
        "templates": prompts.templates,
        "classes": len(data.classes),
        "stage": data.test.name,
        "stage_samples": len(result.labels),
        "precision": "bf16-mixed" if setting.bf16 else "32-true",
        "source": subject.tags.get("source.checkpoint"),
        "run_id": subject.tags.get("source.run_id"),
    }
    figures: list[Row] = [{"metric": "accuracy", "mean": result.accuracy, "low": low, "high": high}]
    figures[0] |= {"chance": result.chance, "most_frequent": result.most_frequent}
    if result.top5_accuracy is not None:
        figures.append({"metric": "top5_accuracy", "mean": result.top5_accuracy, "chance": 5 / result.classes})
    predicted = result.ranked[:, 0]
    table = class_rows(data.classes, result.labels.numpy(), predicted.numpy())
    for number, (row, names) in enumerate(zip(table, prompts.names, strict=True)):
        others = torch.bincount(predicted[result.labels == number], minlength=result.classes)
        others[number] = 0
        most = int(others.argmax())
        row |= {"names": names, "taken_for": data.classes[most] if int(others[most]) else None}
        row |= {"samples": int(row["samples"]), "predicted": int((predicted == number).sum())}
    return [common | figure | whole for figure in figures] + [common | {"metric": "class"} | row for row in table]


def zero_shot_tables(rows: Sequence[Row]) -> list[Table]:
    """The figures beside chance, and the classes."""
    figures, classes = (
        [row for row in rows if (row["metric"] == "class") == best_first] for best_first in (False, True)
    )
    first = figures[0]
    step = "" if first["step"] is None else f" at step {first['step']:,}"
    table = Table(
        title=f"Zero-shot classification by {first['checkpoint']}{step}: {first['stage_samples']:,} pictures "
        f"({first['stage']}), {first['classes']} classes, input {first['resolution']}, {first['precision']}",
        caption="\n".join(
            [
                f"templates: {'; '.join(first['templates'])}",
                "95 % confidence interval by Wilson's score; most frequent class: always telling that one",
            ]
        ),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("metric")
    for heading in ("value", "95 % interval", "chance", "most frequent class"):
        table.add_column(heading, justify="right")
    for row in figures:
        interval = f"{percent(row['low'])} to {percent(row['high'])}" if "low" in row else ""
        most = percent(row["most_frequent"]) if "most_frequent" in row else ""
        table.add_row(row["metric"].replace("_", " "), percent(row["mean"]), interval, percent(row["chance"]), most)
    return [table, class_table(classes)]


def class_table(rows: Sequence[Row]) -> Table:
    """How often each class is told rightly, or the worst of many."""
    rows_to_show, title = list(rows), "By class"
    if len(rows) > MOST_PRINTED:
        rows_to_show = sorted((row for row in rows if row["samples"]), key=lambda row: row["recall"])[:MOST_PRINTED]
        title = f"The {len(rows_to_show)} worst of {len(rows)} classes"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("pictures", "recall", "precision"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for", overflow="fold")
    for row in rows_to_show:
        # A class that has no picture has no recall, and one that is never told no precision.
        recall = percent(row["recall"]) if row["samples"] else "–"
        figures = (recall, percent(row["precision"]) if row["predicted"] else "–")
        table.add_row(row["class"], f"{row['samples']:,}", *figures, row["taken_for"] or "–")
    return table


def percent(share: float) -> str:
    """A share as a person reads it."""
    return f"{100 * share:.1f} %"


def log_zero_shot(
    logger: MLflowLogger, subject: Subject, result: ZeroShotResult, rows: Sequence[Row], data: EvaluationData
) -> None:
    """Log the figures at the checkpoint's step, the classes as a table and the confusion matrix as a picture.

    Args:
        logger: From `lit_pretrain.evaluation.report.open_run`.
        subject: What was measured.
        result: What came of it.
        rows: From `zero_shot_rows`.
        data: The data.
    """
    logger.set_tags({"stage": "evaluate", "model": "ContrastivePretraining", **git_state()})
    first = rows[0]
    logger.log_hyperparams(
        {
            "zero_shot.templates": "; ".join(first["templates"]),
            "zero_shot.stage": first["stage"],
            "zero_shot.stage_samples": first["stage_samples"],
            "resolution": first["resolution"],
            **data.data_module.describe(),
        }
    )
    metrics = {"accuracy": result.accuracy, "chance": result.chance, "most_frequent": result.most_frequent}
    metrics |= dict(zip(("accuracy/low", "accuracy/high"), result.interval, strict=True))
    if result.top5_accuracy is not None:
        metrics["top5_accuracy"] = result.top5_accuracy
    step = subject.step or 0
    logger.log_metrics({f"evaluate/zero_shot_{name}": value for name, value in metrics.items()}, step)
    chance = {"accuracy": result.chance} | ({"top5_accuracy": 5 / result.classes} if "top5_accuracy" in metrics else {})
    logger.log_chance({f"evaluate/zero_shot_{name}": value for name, value in chance.items()})
    table = [{**row, "names": ", ".join(row["names"])} for row in rows if row["metric"] == "class"]
    logger.log_table(table, "zero_shot.json")
    matrix = confusion_figure(result.labels.numpy(), result.ranked[:, 0].numpy(), data.classes)
    logger.log_picture(matrix, "zero_shot/confusion_matrix", step)
