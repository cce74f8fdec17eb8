"""Configs of cells, resolved by the suite's own command line before anything is trained."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.studies.cells import TOWERS
from lit_pretrain.tracking.find import find_checkpoint, split_tower

# How the names of settings end that say where data, or a tokenizer, lies.
PLACES = ("path", "data_files", "tokenizer")


def resolve(configs: list[str], arguments: list[str]) -> dict[str, Any]:
    """The whole config that files and arguments make, every setting with its value.

    Args:
        configs: Files, later ones win.
        arguments: Over them, as `--model.KEY=VALUE`.

    Raises:
        UserError: If a file or a setting is wrong.
    """
    from lit_pretrain.cli.lightning_cli import command_line
    from lit_pretrain.studies.config_check import Resolver

    files = [word for path in configs for word in ("--config", path)]
    config = dict(command_line(["fit", *files, *arguments], Resolver).config_dump)
    for name in ("config", "ckpt_path", "weights_only"):
        config.pop(name, None)
    return config


def resolve_all(requests: list[tuple[str, list[str], list[str]]]) -> list[dict[str, Any]]:
    """As `resolve`, for several; what is wrong is said with the name of whose it is.

    Args:
        requests: Name, files and arguments of each.
    """
    resolved = []
    for name, configs, arguments in requests:
        try:
            resolved.append(resolve(configs, arguments))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return resolved


def settle_start(config: dict[str, Any]) -> str:
    """Make `model.init_from` name the same weights whatever is trained meanwhile.

    Args:
        config: Resolved; a run or "last" becomes the path of its checkpoint.

    Returns:
        What changes with the weights; empty if it starts from none.

    Raises:
        UserError: If there is no such run, file or model.
    """
    settings = config["model"]["init_args"]
    parts = [settings, *(settings[name] for name in TOWERS if isinstance(settings.get(name), dict))]
    return " ".join(filter(None, map(settle, parts)))


def settle(settings: dict[str, Any]) -> str:
    """As `settle_start`, of the settings that `init_from` is among."""
    reference = settings.get("init_from")
    if reference is None:
        return ""
    reference, tower = split_tower(reference)
    path = Path(reference).expanduser()
    if not path.is_dir() or (path / "run.json").is_file():
        try:
            path = find_checkpoint(reference)
        except UserError:
            if is_timm_name(reference):
                return reference
            if reference.count("/") != 1 or path.is_absolute() or reference.startswith("."):
                raise
            # Imported late: the study's own process starts without torch.
            from lit_pretrain.weights.huggingface_bert import find_directory

            # A BERT of the hub keeps its name, by which runs are compared; it is fetched now, not hours later.
            return f"{reference} {files_of(find_directory(reference))}"
    settings["init_from"] = f"{path.resolve()}:{tower}" if tower else str(path.resolve())
    return f"{files_of(path)}:{tower or ''}"


def files_of(path: Path) -> str:
    """Hash of the bytes of a file, or of the files of a directory with their names; a copy has the same."""
    from lit_pretrain.data.content_hash import file_hashes

    if not path.is_dir():
        return file_hashes([str(path)])[0]
    files = sorted(file for file in path.iterdir() if file.is_file())
    hashes = file_hashes([str(file) for file in files])
    return " ".join(f"{file.name}:{found}" for file, found in zip(files, hashes, strict=True))


def data_of(config: dict[str, Any]) -> str:
    """What changes with the bytes of the local files that a config's data is read from; empty if there are none."""
    from lit_pretrain.data.content_hash import content_hash, folder_hash
    from lit_pretrain.data.disk_cache import default_cache_directory

    parts = []
    for key, place in sorted(places_of(config.get("data") or {}, "data")):
        path = Path(place).expanduser()
        if path.is_dir():
            files = sorted(str(file) for file in path.rglob("*") if file.is_file())
            parts.append(f"{key}={folder_hash(files, default_cache_directory())}" if files else f"{key}=nothing")
        elif files := [str(path)] if path.is_file() else sorted(filter(os.path.isfile, glob.glob(str(path)))):
            parts.append(f"{key}={content_hash(files, default_cache_directory())}")
    return " ".join(parts)


def places_of(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text among settings whose name says that it may be a place: path, data_files, test_path, tokenizer, ..."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places_of(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from places_of(inner, key)
    elif isinstance(value, str) and key.endswith(PLACES):
        yield key, value


def is_timm_name(reference: str) -> bool:
    """Whether a name is that of a model of timm."""
    import timm

    return timm.is_model(reference.removeprefix("hf-hub:timm/").removeprefix("timm/").partition(".")[0])


def prepare(requests: list[tuple[str, list[str], list[str]]]) -> list[tuple[dict[str, Any], str]]:
    """Resolve configs and the weights they start from; for a process of the study.

    Args:
        requests: As for `resolve_all`.

    Returns:
        For each, its config and what changes with the contents of its weights and its data.
    """
    resolved = resolve_all(requests)
    starts = []
    for (name, *_), config in zip(requests, resolved, strict=True):
        check_config(name, config)
        try:
            starts.append(f"weights: {settle_start(config)} data: {data_of(config)}")
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return list(zip(resolved, starts, strict=True))


def check_config(name: str, config: dict[str, Any]) -> None:
    """A study needs checkpoints and MLflow, and an end by steps."""
    if config["trainer"].get("enable_checkpointing") is False:
        raise UserError(
            f"{name}: trainer.enable_checkpointing is false: a study goes on from checkpoints, so leave it."
        )
    if config["trainer"].get("fast_dev_run"):
        raise UserError(f"{name}: trainer.fast_dev_run logs nothing: set trainer.max_steps to a small number instead.")
    schedule = config.get("model", {}).get("init_args", {}).get("schedule") or {}
    if schedule.get("budget") is not None:
        raise UserError(
            f"{name}: model.schedule.budget is {schedule['budget']}, and a study compares trainings by their steps, "
            "which the clock leaves open: set trainer.max_steps instead."
        )


def check_test_data(name: str, config: dict[str, Any], metric: str) -> None:
    """Without test data, data modules let the validation data serve.

    Raises:
        UserError: If the data names no test data.
    """
    data = config["data"]["init_args"]
    keys = [key for key in data if key.startswith("test_")]
    if not any(data[key] for key in keys if key != "test_name"):
        validation = "validation/" + metric.partition("/")[2]
        raise UserError(
            f"{name}: the data names no test data for {metric}: set data.test_split or data.test_path, or set metric "
            f"to {validation}."
        )
