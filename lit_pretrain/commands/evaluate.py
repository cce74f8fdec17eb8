"""Measure frozen encoders without training them: nearest neighbours, linear probes at any layer, zero-shot accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lit_pretrain.errors import UserError
from lit_pretrain.required import required

if TYPE_CHECKING:
    from lit_pretrain.evaluation.preparation import EvaluationData
    from lit_pretrain.evaluation.protocols import Protocol, Setting
    from lit_pretrain.evaluation.subjects import Subject
    from lit_pretrain.tracking.mlflow_logger import MLflowLogger

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help="last, a run's name or id, a checkpoint, a directory of public BERT or timm weights, or a name of timm's; "
        "of contrastive pretraining, RUN is its tower of pictures and RUN:text that of texts",
    )
    add("--config", metavar="FILE", help="whose data is taken (default: that of the first checkpoint's run)")
    add("--data.KEY", dest="data", metavar="VALUE", help="a setting of the data, as for fit; --data CLASS starts anew")
    add(
        "--protocol",
        nargs="+",
        choices=["knn", "linear", "neighbors", "zero-shot"],
        help="(default: knn linear; neighbors if there is a --query, zero-shot if there are --templates)",
    )
    add("--layers", default="three", metavar="L", help="three, all, last, or numbers from 1, as in 1,3,6 (three)")
    add(
        "--pooling",
        choices=["mean", "cls", "encoder"],
        default="mean",
        help="mean of the patches or real tokens, the first token, or the encoder's own, of the last layer (mean)",
    )
    add(
        "--train-samples",
        nargs="+",
        default=["all"],
        metavar="N",
        help="labels to learn from: numbers, shares below 1, or all; drawn so that classes keep their shares (all)",
    )
    add(
        "--regularization",
        default="1.0",
        metavar="C",
        help="of linear probes of classes: scikit-learn's C, or chosen, by cross-validation (1.0)",
    )
    add("--stage", choices=["test", "validation"], help="what is measured on (default: test if there is any)")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of draws of labels and of fresh weights (0)")
    add("--random", action="store_true", help="also measure fresh weights of the same shape")
    add(
        "--query",
        nargs="+",
        metavar="Q",
        help="for neighbors: sample ids of the stage, texts or picture files (default: 8 drawn samples)",
    )
    add("--neighbors", type=int, default=8, metavar="K", help="for neighbors: how many are shown (8)")
    add(
        "--templates",
        nargs="+",
        metavar="T",
        help="for zero-shot: what is said of a class, {} being its name, averaged; or a YAML file (a photo of a {}.)",
    )
    add(
        "--class-names",
        metavar="FILE",
        help="for zero-shot: YAML, a list of the classes' names or a mapping from the data's, as airplane: [plane]",
    )
    add("--architecture", metavar="NAME", help="timm's name for the ViT of a file of weights without a config.json")
    add("--output", metavar="DIR", help="where neighbors are written (default: the run's directory, else here)")
    add("--no-log", action="store_true", help="keep it out of MLflow")
    add("--json", metavar="FILE", help="write the rows as JSON too")
    # Settings of the data have names that argparse cannot know: they are taken out before it looks.
    plain = parser.parse_args

    def parse(arguments: list[str]) -> argparse.Namespace:
        rest, settings = take_settings(arguments)
        namespace = plain(rest)
        namespace.data = settings
        return namespace

    cast(Any, parser).parse_args = parse


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
        else:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise UserError(f"{argument} has no value: give one after it.")
            settings += [argument, value]
    return rest, settings


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    from rich.console import Console

    from lit_pretrain.commands.evaluation_data import make_evaluation_data
    from lit_pretrain.commands.output import check_writable, write_json
    from lit_pretrain.evaluation.preparation import (
        check_one_modality,
        check_same_samples,
        chosen_layers,
        prepare_evaluation_data,
        resolution_of,
        say,
    )
    from lit_pretrain.evaluation.protocols import measure, row_of
    from lit_pretrain.evaluation.report import close_run, log_data, log_rows, open_run, table_of
    from lit_pretrain.evaluation.subjects import load_subject
    from lit_pretrain.quiet import quieten

    named = named_protocols(arguments)
    protocols = [protocol for protocol in ("knn", "linear") if protocol in named]
    learns = named != ["zero-shot"]
    if arguments.neighbors < 1:
        raise UserError(f"--neighbors is {arguments.neighbors}: give at least 1.")
    for option, needed in (("query", "neighbors"), ("templates", "zero-shot"), ("class_names", "zero-shot")):
        if getattr(arguments, option) and needed not in named:
            option = option.replace("_", "-")
            raise UserError(f"--{option} is for the protocol {needed}: add it to --protocol, or leave --{option} out.")
    if arguments.json:
        check_writable(Path(arguments.json))
    quieten()
    subjects = [load_subject(reference, arguments.architecture) for reference in dict.fromkeys(arguments.checkpoints)]
    check_one_modality(subjects)
    if "zero-shot" in named:
        check_pairs(subjects)
    layers = [chosen_layers(subject, arguments.layers, arguments.pooling) for subject in subjects]

    console, data_by_tokenizer = Console(), {}
    measured_rows: list[Row] = []
    other_rows: list[Row] = []
    for subject, make, subject_layers in contenders(subjects, layers, arguments.random):
        key = subject.tokenizer.hash if subject.tokenizer else ""
        if key not in data_by_tokenizer:
            data_module = make_evaluation_data(subject, arguments.config, arguments.data, subjects)
            labelled = named != ["neighbors"]
            data_by_tokenizer[key] = prepare_evaluation_data(data_module, arguments.stage, labelled, learns)
            check_same_samples(next(iter(data_by_tokenizer.values())), data_by_tokenizer[key], subject.name)
        data = data_by_tokenizer[key]
        setting = setting_of(arguments, protocols, data)
        logger = None if arguments.no_log else open_run(subject)
        try:
            if logger is not None:
                log_data(logger, data, learns)
            if protocols:
                say(f"Features of {subject.name} ...")
                measurements = measure(make, data.train, data.test, subject_layers, setting)
                resolution = resolution_of(subject, data)
                measured_rows += (
                    rows := [
                        row_of(subject, measurement, setting, data.test, resolution) for measurement in measurements
                    ]
                )
                if logger is not None:
                    log_rows(logger, subject, rows, setting, data)
            if "zero-shot" in named and subject.pair is not None:
                other_rows += show_zero_shot(arguments, subject, data, setting, logger, console)
            if "neighbors" in named:
                other_rows += show_neighbors(arguments, subject, subject_layers, data, setting, logger, console)
        except BaseException:
            if logger is not None:
                logger.finalize("failed")
            raise
        if logger is not None:
            close_run(logger, subject)
    if measured_rows:
        console.print(table_of(measured_rows, setting))
    if arguments.json:
        write_json(arguments.json, measured_rows + other_rows)
    return 0


def named_protocols(arguments: argparse.Namespace) -> list[str]:
    """What is asked for: by its name, or by an option that only it has."""
    if arguments.protocol:
        return list(dict.fromkeys(arguments.protocol))
    zero_shot = ["zero-shot"] if arguments.templates or arguments.class_names else []
    return (["neighbors"] if arguments.query else []) + zero_shot or ["knn", "linear"]


def check_pairs(subjects: list[Subject]) -> None:
    """Refuse zero-shot classification by what cannot compare pictures with texts.

    Raises:
        UserError: In one sentence.
    """
    for subject in subjects:
        if subject.pair is None:
            raise UserError(
                f"{subject.name} has no tower of texts and one of pictures, which zero-shot compares: give a "
                "checkpoint of ContrastivePretraining, or leave zero-shot out of --protocol."
            )
        if subject.is_text:
            raise UserError(f"zero-shot is measured on pictures: give {subject.name} without ':text'.")


def setting_of(arguments: argparse.Namespace, protocols: Sequence[Protocol], data: EvaluationData) -> Setting:
    """How it is measured."""
    import torch

    from lit_pretrain.evaluation.protocols import Setting, budget_of
    from lit_pretrain.measures.linear_probe import parse_regularization
    from lit_pretrain.precision import hardware_bf16

    regularization = parse_regularization(arguments.regularization)
    classes = len(data.classes) or None
    budgets = dict.fromkeys(budget_of(text, len(data.train), classes) for text in arguments.train_samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seeds = list(dict.fromkeys(arguments.seeds))
    return Setting(protocols, arguments.pooling, list(budgets), seeds, classes, device, hardware_bf16(), regularization)


def contenders(subjects: list[Subject], layers: list[list[int]], fresh: bool) -> list[tuple[Subject, Any, list[int]]]:
    """What is measured, each with what `measure` takes (itself, or what makes it from a seed) and its layers."""
    from lit_pretrain.evaluation.subjects import fresh_subject, of_each_shape

    subjects_with_layers: list[tuple[Subject, Any, list[int]]] = [
        (subject, subject, subject_layers) for subject, subject_layers in zip(subjects, layers, strict=True)
    ]
    if fresh:
        subjects_with_layers += [
            (fresh_subject(subject, 0), partial(fresh_subject, subject), layers[place])
            for place, subject in of_each_shape(subjects)
        ]
    return subjects_with_layers


def show_neighbors(
    arguments: argparse.Namespace,
    subject: Subject,
    layers: list[int],
    data: EvaluationData,
    setting: Setting,
    logger: MLflowLogger | None,
    console: Any,
) -> list[Row]:
    """Draw or print the neighbours of the queries at every layer; the rows are returned, and written as CSV."""
    from lit_pretrain.evaluation.neighbor_panels import picture_panel, text_table
    from lit_pretrain.evaluation.neighbors import find_neighbors, find_queries, rows_of
    from lit_pretrain.tracking.paths import make_directory, safe_name, shown_path, write_csv

    queries = find_queries(arguments.query or [], data, subject, setting.seeds[0])
    directory = Path(arguments.output) if arguments.output else logger.run_directory if logger else Path()
    make_directory(directory)
    neighbors = find_neighbors(subject, queries, data.train, layers, setting, arguments.neighbors)
    rows = rows_of(subject, queries, neighbors, data)
    for layer_neighbors in neighbors:
        stem = directory / f"neighbors-{safe_name(subject.name)}-block_{layer_neighbors.layer}"
        layer_rows = [row for row in rows if row["layer"] == layer_neighbors.layer]
        table = stem.with_name(f"{stem.name}.csv")
        write_csv(table, layer_rows)
        if subject.is_text:
            console.print(text_table(layer_rows))
        else:
            panel = picture_panel(queries, layer_neighbors, data)
            panel.save(picture := stem.with_name(f"{stem.name}.png"))
            console.print(
                f"Nearest training pictures of block {layer_neighbors.layer}: {shown_path(picture)}", soft_wrap=True
            )
            if logger is not None:
                logger.log_picture(panel, f"neighbors/block_{layer_neighbors.layer}", subject.step or 0)
        if logger is not None:
            logger.log_artifact(table, "neighbors")
    return rows


def show_zero_shot(
    arguments: argparse.Namespace,
    subject: Subject,
    data: EvaluationData,
    setting: Setting,
    logger: MLflowLogger | None,
    console: Any,
) -> list[Row]:
    """Classify the pictures by their classes' names, print and log what comes of it, and return the rows."""
    from lit_pretrain.evaluation.pair_embedder import PairEmbedder, open_pair
    from lit_pretrain.evaluation.preparation import resolution_of, say
    from lit_pretrain.evaluation.zero_shot import DEFAULT_TEMPLATES, make_prompts, measure_zero_shot
    from lit_pretrain.evaluation.zero_shot_report import log_zero_shot, zero_shot_rows, zero_shot_tables

    templates = arguments.templates or list(DEFAULT_TEMPLATES)
    is_file = len(templates) == 1 and templates[0].endswith((".yaml", ".yml"))
    prompts = make_prompts(data.classes, templates[0] if is_file else templates, arguments.class_names)
    say(f"Zero-shot classification by {subject.name} ...")
    module, _ = open_pair(required(subject.pair))
    embedder = PairEmbedder(module.to(setting.device), setting.bf16)
    result = measure_zero_shot(embedder, data.test, prompts)
    rows = zero_shot_rows(subject, result, prompts, data, setting, resolution_of(subject, data))
    for table in zero_shot_tables(rows):
        console.print(table)
    if logger is not None:
        log_zero_shot(logger, subject, result, rows, data)
    return rows
