"""What jsonargparse says of a wrong config, in one sentence: the file, the line, and the nearest right name.

jsonargparse tries a value against every type and every class that would fit, a parser within a parser, and its last
message tells of all of them. Its first one names the key or the value that stopped it; that is the one to explain.
"""

import inspect
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_pretrain.cli.arguments import CONFIG_OPTIONS
from lit_pretrain.cli.own_classes import explain_own_constructor, explain_own_import
from lit_pretrain.errors import nearest

TOP_LEVEL = (
    "trainer",
    "model",
    "data",
    "seed_everything",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
)
# Modules of Lightning that look at settings when a training begins, and raise plain errors.
COMPLAINING = ("fit_loop", "evaluation_loop", "early_stopping", "model_checkpoint", "data_connector")
# As many settings are all told where none is like the wrong one.
FEW = 10
# Where classes stand whose methods a config may name.
WHOLE_PATHS = {"TextEncoder": "lit_pretrain.backbone", "VisionEncoder": "lit_pretrain.backbone"}
TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'NoneType'>": "null",
    "<class 'list'>": "a list",
    "<class 'collections.abc.Sequence'>": "a list, in brackets",
    "<class 'dict'>": "a mapping",
}


@dataclass(frozen=True)
class Place:
    """Where a key stands.

    Args:
        file: The config.
        line: Its line, from 1.
        owner: Class whose argument it is, empty if none is named.
    """

    file: str
    line: int
    owner: str


def explain(messages: list[str], configs: list[str]) -> str:
    """The sentence for the first message that can be explained.

    Args:
        messages: What the parsers said, the innermost first.
        configs: The config files, to find the place in.
    """
    texts = [" ".join(message.split()) for message in messages]
    named = [text for config in configs for name, text, _ in walk(config) if name == "class_path"]
    named += [path for text in texts for path in re.findall(r"'class_path': '([\w.]+)'", text)]
    # A short name with a method is a class of the suite's.
    ours = known_names()
    if sentence := explain_own_import(path for path in dict.fromkeys(named) if path.partition(".")[0] not in ours):
        return sentence
    section = re.match(r'Parser key "([\w.]+)"', texts[-1])
    for text in texts:
        for explainer in (explain_unknown, explain_missing, explain_class, explain_value):
            if sentence := explainer(text, section.group(1) if section else "", configs):
                return sentence
    return f"The config cannot be used: {texts[0][:300].rstrip('.')}."


def explain_order(arguments: list[str]) -> str | None:
    """Settings of a class that stand before the config that names the class, and so belong to nothing."""
    names = [argument.partition("=")[0] for argument in arguments]
    first = next((place for place, name in enumerate(names) if name in CONFIG_OPTIONS), 0)
    for name in names[:first]:
        if name.startswith(("--model.", "--data.")) and name.partition(".")[0] not in names[:first]:
            return f"{name} stands before the config that names its class: give settings after all --config."
    return None


def explain_unknown(text: str, section: str, configs: list[str]) -> str | None:
    """A key, or an argument of the command line, that does not exist."""
    match = re.search(r"[Oo]ption '([^']+)' is not accepted", text) or re.search(
        r"(?:does not accept option|[Kk]ey) '([^']+)'(?: is not expected)?", text
    )
    if match is None and (match := re.match(r"Unrecognized arguments: (.+)", text)) is None:
        return None
    key = match.group(1).split()[0].split("=")[0].lstrip("-")
    if not text.startswith("Unrecognized") or "." in key:
        return unknown_key(key, section, configs)
    return f"'{key}' is not an argument{nearest(key, TOP_LEVEL)}: settings are given as --model.KEY VALUE and the like."


def unknown_key(key: str, section: str, configs: list[str]) -> str:
    """The sentence for a key that does not exist, with the nearest of its class, else the nearest of all."""
    names, leaf = known_names(), key.rpartition(".")[2]
    # Others may have a setting of this name.
    place = find_key(key, configs, unknown_to=names) or find_key(key, configs)
    if place and leaf in names.get(place.owner, ()):
        # The files are right, the command line is not: of a list it means the last item.
        return (
            f"There is no setting '{key}' where the command line sets it, though {place.owner} has one: name the right "
            "place, or set it in a config; of a list the command line means the last item."
        )
    owners = names.get(place.owner if place else "", set())
    if section.startswith("trainer") or key.startswith("trainer."):
        owners = owners or names["Trainer"]
    guess = nearest(leaf, owners) or nearest(leaf, set().union(*names.values()) - {leaf})
    if place and leaf not in owners and 0 < len(owners) < FEW and not nearest(leaf, owners):
        guess = f" (it has {', '.join(sorted(owners))})"
    of = f" of {place.owner}" if place and place.owner else f" of {section}" if section else ""
    return f"There is no setting '{key}'{of}{guess}: {correct(place)}."


def explain_missing(text: str, section: str, configs: list[str]) -> str | None:
    """A key without which nothing can be made."""
    match = re.search(r"(?:[Oo]ption|[Kk]ey|argument) [\"']?([\w.]+)[\"']? is required", text)
    if match is None:
        return None
    key = match.group(1).removeprefix("fit.").removeprefix("validate.").removeprefix("test.").removeprefix("predict.")
    whose = f" of {section}" if section and section != key else ""
    owners = {name for name in named_classes(configs) if key in known_names().get(name, ())}
    if len(owners) == 1:
        whose = f" of {owners.pop()}"
    if not configs:
        return f"'{key}' is not given: name a config, as in --config configs/quickstart.yaml."
    return f"The config lacks '{key}'{whose}: set it, or start from one of the files in configs/."


def explain_class(text: str, section: str, configs: list[str]) -> str | None:
    """A class_path that names nothing, or something that does not fit."""
    match = (
        re.search(r"Expected a dot import path string: ([\w.]+)", text)
        or re.search(r"[Ii]mport path ([\w.]+)", text)
        or re.search(r"No module named '([\w.]+)'", text)
        or re.search(r"Problem with given class_path '([\w.]+)'", text)
    )
    if match is None:
        return None
    key = re.match(r'Parser key "([\w.]+)"', text)
    where = key.group(1) if key else section
    named = re.search(r"given class_path '([\w.]+)'", text)
    name, _, method = (named or match).group(1).rpartition(".")
    if method == "from_pretrained" and name in WHOLE_PATHS:
        place = find_key("class_path", configs, f"{name}.{method}")
        return (
            f"'{name}.{method}' of '{where}' needs its whole path: write {WHOLE_PATHS[name]}.{name}.{method} "
            f"({correct(place)})."
        )
    if where.rpartition(".")[2] == "objectives" and "." in match.group(1):
        # It was found, see `explain_own_import`.
        return (
            f"{match.group(1)} is no objective: derive it from lit_pretrain.objectives.Objective, or on pictures from "
            "VisionObjective."
        )
    names = known_names()
    place = find_key("class_path", configs, match.group(1))
    if match.group(1) in names:
        return f"{match.group(1)} is a class of another kind than '{where}' takes: {correct(place)}."
    guess = nearest(match.group(1).rpartition(".")[2], names)
    return f"No class '{match.group(1)}' can be taken for '{where}'{guess}: {correct(place)}."


def explain_value(text: str, section: str, configs: list[str]) -> str | None:
    """A value of the wrong type, or none of the choices."""
    key = re.match(r'Parser key "([\w.]+)"', text)
    value = re.search(r"(?:Got|Given) value: (.*)$", text)
    if key is None or value is None or value.group(1).startswith(("{", "Namespace", "NestedArg", "[")):
        return None
    expected = re.findall(r"Expected a (<class '[\w.]+'>|typing\.Literal\[[^\]]*\])", text)
    if not expected:
        return None
    choices = [choice for kind in expected for choice in re.findall(r"'([^']*)'|(\d+)", kind) if "Literal" in kind]
    flat = list(dict.fromkeys(word or number for word, number in choices))
    kinds = [TYPES.get(kind, kind) for kind in dict.fromkeys(expected) if "Literal" not in kind]
    guess = nearest(value.group(1), flat)
    needs = " or ".join([*kinds, *([f"one of {', '.join(flat)}"] if flat else [])])
    name = key.group(1) if key.group(1).startswith(section) else f"{section}: {key.group(1)}"
    place = find_key(key.group(1), configs, value.group(1))
    return f"'{name}' is {value.group(1)}, but takes {needs}{guess}: {correct(place)}."


def explain_instantiation(error: Exception, configs: list[str]) -> str | None:
    """What jsonargparse says of a class of a config that could not be made, such as a logger without its package.

    Args:
        error: That it raised.
        configs: The config files, to find a person's own classes in.

    Returns:
        A sentence with the reason that the class gave; None if it is not such an error.
    """
    text = " ".join(str(error).split())
    if ("Union subtypes" in text or "Problem with given" in text) and (
        sentence := explain_own_constructor(text, (one for config in configs for one in classes_of(config)))
    ):
        return sentence
    match = re.search(r"Problem with given class_path '([\w.]+)': (.+?)(?: - Expected| Given value|$)", text)
    if match is None:
        return None
    name, reason = match.group(1), match.group(2).strip().rstrip(".")
    return f"{name.rpartition('.')[2]} cannot be made ({reason[:300]}): correct its settings, or install what it needs."


def explain_lightning(error: Exception) -> str | None:
    """What Lightning itself finds wrong with settings of its trainer or callbacks once a training begins.

    Returns:
        A sentence; None if the error came from elsewhere, or says nothing of settings.
    """
    place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    by_lightning = place.parent.parent.name == "pytorch" and place.stem in COMPLAINING
    if not by_lightning and type(error).__name__ != "MisconfigurationException":
        return None
    text = " ".join(str(error).split())
    return f"The trainer's settings do not fit this training ({text[:400].rstrip('.')}): correct them."


def correct(place: Place | None) -> str:
    """What to do, and where."""
    return f"correct {place.file}, line {place.line}" if place else "correct the config or the command line"


def check_top_level(path: str, content: dict) -> str | None:
    """The sentence for a key at the top of a config that means nothing, or null."""
    wrong = next((key for key in content if str(key).rstrip("+") not in TOP_LEVEL), None)
    if wrong is None:
        return None
    return f"There is no setting '{wrong}'{nearest(str(wrong), TOP_LEVEL)}: {correct(find_key(str(wrong), [path]))}."


def find_key(
    key: str, configs: list[str], value: str | None = None, unknown_to: dict[str, set[str]] | None = None
) -> Place | None:
    """The last place of a key; of a dotted key only the last part need be there.

    Args:
        key: Which.
        configs: The config files.
        value: What it must be set to; null for anything.
        unknown_to: Argument names by class: only where the class is known and has no such argument; null for anywhere.
    """
    leaf = key.rpartition(".")[2]
    keys = [
        place
        for config in configs
        for name, text, place in walk(config)
        if name == leaf
        and (value is None or text == value)
        and (unknown_to is None or leaf not in unknown_to.get(place.owner, {leaf}))
    ]
    return keys[-1] if keys else None


def named_classes(configs: list[str]) -> set[str]:
    """Classes, and methods that make one, which the configs name."""
    paths = [text.split(".") for config in configs for name, text, _ in walk(config) if name == "class_path"]
    return {".".join(path[-2:] if path[-1].startswith("from_") else path[-1:]) for path in paths}


def classes_of(config: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `class_path` of a YAML file with its `init_args`."""
    try:
        waiting = [yaml.safe_load(Path(config).read_text(encoding="utf-8"))]
    except (OSError, yaml.YAMLError):
        return
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and isinstance(one.get("class_path"), str):
            yield one["class_path"], one.get("init_args") or {}
        waiting += list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []


def walk(config: str) -> Iterator[tuple[str, str, Place]]:
    """Every key of a YAML file with its value, if that is a word, and its place."""
    try:
        root = yaml.compose(Path(config).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return
    yield from walk_node(root, config, "")


def walk_node(node: yaml.Node | None, config: str, owner: str) -> Iterator[tuple[str, str, Place]]:
    """As `walk`, below a node that belongs to a class."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from walk_node(item, config, "")
    if not isinstance(node, yaml.MappingNode):
        return
    kinds = {key.value: value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
    for key, value in node.value:
        text = value.value if isinstance(value, yaml.ScalarNode) else ""
        yield key.value, text, Place(config, key.start_mark.line + 1, owner)
        path = kinds.get("class_path", "").split(".") if key.value == "init_args" else [""]
        # A method that makes one has arguments of its own.
        inner = ".".join(path[-2:] if path[-1].startswith("from_") else path[-1:])
        yield from walk_node(value, config, inner)


def known_names() -> dict[str, set[str]]:
    """Argument names of every class that a config may name, by class name, and the top level's as ""."""
    import lightning
    from lightning import LightningDataModule, LightningModule
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
    from lit_pretrain.class_paths import arguments_of, subclasses
    from lit_pretrain.data.images.augmentation import ImageAugmentation
    from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig
    from lit_pretrain.objectives import Objective
    from lit_pretrain.tracking.mlflow_logger import MLflowLogger
    from lit_pretrain.weights.timm_settings import NOT_IN_TENSORS

    names = {"": {*TOP_LEVEL, "config", "class_path", "init_args"}}
    kinds = [TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig, ImageAugmentation]
    kinds += [AdamWConfig, ScheduleConfig, MLflowLogger, lightning.Trainer]
    for base in (LightningModule, LightningDataModule, Objective, Callback, Logger):
        kinds += [kind for kind in subclasses(base) if kind.__module__.startswith(("lit_pretrain", "lightning"))]
    for encoder in (TextEncoder, VisionEncoder):
        parameters = inspect.signature(encoder.from_pretrained).parameters
        names[f"{encoder.__name__}.from_pretrained"] = set(parameters) - {"others"}
    names["VisionEncoder.from_pretrained"] |= set(NOT_IN_TENSORS)
    for kind in kinds:
        names[kind.__name__] = set(arguments_of(kind))
    return names
