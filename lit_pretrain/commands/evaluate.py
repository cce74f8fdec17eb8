"""Measure frozen encoders without training them: nearest neighbours and linear probes at any layer."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lightning import LightningDataModule

    from lit_pretrain.evaluation.labelled_data import Part
    from lit_pretrain.evaluation.measuring import Setting
    from lit_pretrain.evaluation.subjects import Subject

DEFAULT_CLASSES = {True: "LabelledDataModule", False: "ImageDataModule"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help="last, a run's name or id, a checkpoint, a directory of public BERT or timm weights, or a name of timm's",
    )
    parser.add_argument("--config", metavar="FILE", help="whose data is used (default: the first checkpoint's run's)")
    parser.add_argument(
        "--data.KEY", dest="data", metavar="VALUE", help="a setting of the data, as for fit; --data CLASS starts anew"
    )
    parser.add_argument(
        "--protocol", nargs="+", choices=["knn", "linear"], default=["knn", "linear"], help="(default: knn linear)"
    )
    parser.add_argument(
        "--layers", default="three", metavar="L", help="all, last, or numbers from 1, as in 1,3,6 (default: three)"
    )
    parser.add_argument(
        "--pooling",
        choices=["mean", "cls", "encoder"],
        default="mean",
        help="mean of the patches or real tokens, the first token, or the encoder's own, of the last layer",
    )
    parser.add_argument(
        "--train-samples",
        nargs="+",
        default=["all"],
        metavar="N",
        help="labels to learn from: numbers, shares below 1, or all; drawn so that classes keep their shares",
    )
    parser.add_argument("--stage", choices=["test", "validation"], help="what is measured on (default: test if any)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of draws and fresh weights (0)")
    parser.add_argument("--random", action="store_true", help="also measure fresh weights of the same shape")
    parser.add_argument("--no-log", action="store_true", help="keep the numbers out of MLflow")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")
    # Settings of the data have names that argparse cannot know: they are taken out before it looks.
    plain = parser.parse_args

    def parse(arguments: list[str]) -> argparse.Namespace:
        rest, settings = take_settings(arguments)
        namespace = plain(rest)
        namespace.data = settings
        return namespace

    parser.parse_args = parse


def take_settings(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part `--data...` settings, each with its value, from the other arguments.

    Raises:
        UserError: If a setting has no value.
    """
    rest, settings = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument.partition("=")[0] != "--data" and not argument.startswith("--data."):
            rest.append(argument)
        elif "=" in argument:
            settings.append(argument)
        elif (value := next(remaining, None)) is not None:
            settings += [argument, value]
        else:
            raise UserError(f"{argument} has no value: give one after it.")
    return rest, settings


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from rich.console import Console

    from lit_pretrain.commands.output import check_writable
    from lit_pretrain.evaluation.measuring import measure, row_of
    from lit_pretrain.evaluation.report import log_rows, open_run, table_of
    from lit_pretrain.evaluation.subjects import load_subject
    from lit_pretrain.quiet import quieten

    if arguments.json:
        check_writable(Path(arguments.json))
    quieten()
    subjects = [load_subject(reference) for reference in dict.fromkeys(arguments.checkpoints)]
    check_one_modality(subjects)
    layers = {id(subject): chosen_layers(subject, arguments) for subject in subjects}
    data = prepared_data(subjects[0], arguments)
    train, test = parts_of(data, arguments.stage)
    setting = setting_of(arguments, data, train)
    rows: list[dict[str, Any]] = []
    for subject, make in contenders(subjects, arguments.random):
        say(f"Features of {subject.name} ...")
        chosen = layers[id(subject)] if id(subject) in layers else chosen_layers(subject, arguments)
        found = measure(make, train, test, chosen, setting)
        resolution = resolution_of(subject, data)
        mine = [row_of(subject, one, setting, test, resolution) for one in found]
        rows += mine
        if not arguments.no_log:
            logger = open_run(subject)
            log_rows(logger, subject, mine, facts_of(data, setting, test, resolution))
            logger.finalize("success")
    Console().print(table_of(rows, setting))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def say(line: str) -> None:
    """Tell a person what is going on, apart from what is found."""
    print(line, file=sys.stderr, flush=True)


def check_one_modality(subjects: list[Subject]) -> None:
    """Refuse texts and pictures in one table."""
    if len({subject.is_text for subject in subjects}) > 1:
        text, picture = (next(one.name for one in subjects if one.is_text == kind) for kind in (True, False))
        raise UserError(f"{text} reads text and {picture} pictures: evaluate them one after the other.")


def chosen_layers(subject: Subject, arguments: argparse.Namespace) -> list[int]:
    """The blocks that are asked for, from 1.

    Raises:
        UserError: If there is no such block, or it has no such features.
    """
    from lit_pretrain.evaluation.features import check_depths, probe_depths

    depth, text = subject.encoder.config.depth, arguments.layers
    if text == "three":
        layers = [depth] if arguments.pooling == "encoder" else probe_depths(depth)
    elif text in ("all", "last"):
        layers = list(range(1, depth + 1)) if text == "all" else [depth]
    else:
        try:
            layers = list(dict.fromkeys(int(one) for one in text.split(",")))
        except ValueError:
            raise UserError(f"--layers is '{text}': give all, last, or numbers from 1, as in 1,3,6.") from None
    check_depths(subject.encoder, layers, arguments.pooling)
    return layers


def prepared_data(subject: Subject, arguments: argparse.Namespace) -> LightningDataModule:
    """The data that is measured on, ready.

    Raises:
        UserError: If it cannot be had, is of the other modality, or has no labels.
    """
    from lit_pretrain.data import DocumentDataModule
    from lit_pretrain.evaluation.labelled_data import make_data

    config = arguments.config or (str(subject.config) if subject.config else None)
    data = make_data(config, arguments.data, DEFAULT_CLASSES[subject.is_text])
    if isinstance(data, DocumentDataModule):
        raise UserError(
            f"The data of {config} are documents without labels: give labelled texts by --config FILE or "
            "--data LabelledDataModule --data.path ... --data.text_column ... --data.label_column ..."
        )
    data.prepare_data()
    data.setup("validate")
    if not getattr(data, "classes", None):
        raise UserError("The data has no labels to measure by: give --data.label_column COLUMN.")
    return data


def parts_of(data: LightningDataModule, stage: str | None) -> tuple[Part, Part]:
    """What is learned from, and what is measured on."""
    from lit_pretrain.evaluation.labelled_data import has_test_part, open_part

    if stage is None and not has_test_part(data):
        say("The data has no test part: its validation part is measured on.")
    elif stage == "test" and not has_test_part(data):
        raise UserError("The data has no test part: give data.test_path and the like, or --stage validation.")
    stage = stage or ("test" if has_test_part(data) else "validation")
    return open_part(data, "train"), open_part(data, stage)


def setting_of(arguments: argparse.Namespace, data: LightningDataModule, train: Part) -> Setting:
    """How it is measured."""
    import torch

    from lit_pretrain.evaluation.measuring import Setting, budget_of
    from lit_pretrain.precision import hardware_bf16

    classes = len(data.classes)
    budgets = list(dict.fromkeys(budget_of(text, len(train), classes) for text in arguments.train_samples))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    protocols = list(dict.fromkeys(arguments.protocol))
    seeds = list(dict.fromkeys(arguments.seeds))
    return Setting(protocols, arguments.pooling, budgets, seeds, classes, device, hardware_bf16())


def contenders(subjects: list[Subject], fresh: bool) -> list[tuple[Subject, Any]]:
    """What is measured, each with what `measure` takes: itself, or what makes it from a seed."""
    from functools import partial

    from lit_pretrain.evaluation.subjects import fresh_subject, shapes

    found: list[tuple[Subject, Any]] = [(subject, subject) for subject in subjects]
    if fresh:
        found += [(fresh_subject(subject, 0), partial(fresh_subject, subject)) for subject in shapes(subjects)]
    return found


def resolution_of(subject: Subject, data: LightningDataModule) -> str:
    """Size of what the encoder is given."""
    return f"{data.maximum_length} tokens" if subject.is_text else f"{subject.encoder.image_size} px"


def facts_of(data: LightningDataModule, setting: Setting, test: Part, resolution: str) -> dict[str, Any]:
    """Parameters of the run in MLflow."""
    from lit_pretrain.evaluation.report import protocol_lines

    return {
        "protocols": "; ".join(protocol_lines(setting)),
        "pooling": setting.pooling,
        "stage": test.name,
        "stage_samples": len(test),
        "seeds": " ".join(map(str, setting.seeds)),
        "resolution": resolution,
        **data.describe(),
    }
