"""The settings that a sweep varies, found in the config that they are settings of.

The resolved config holds every setting that there is, so that a key which is not in it does not exist.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.studies.overrides import TOP
from lit_pretrain.studies.plan import set_value
from lit_pretrain.studies.sweep_settings import Range, SweepSettings, as_number, closest, shown

# What a sweep sets itself.
OWN = ("trainer.logger", "trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.default_root_dir")
INTERVALS = ("trainer.val_check_interval", "trainer.check_val_every_n_epoch")


@dataclass(frozen=True)
class Parameter:
    """A setting that is varied.

    Attributes:
        key: As the person names it, and Optuna knows it.
        path: Its whole key in the resolved config.
        name: A short one, for tables; no other parameter of the sweep has it.
        values: Its range.
        whole: Whether its numbers are whole.
    """

    key: str
    path: str
    name: str
    values: Range
    whole: bool

    @property
    def distribution(self) -> Any:
        """Optuna's."""
        from optuna import distributions

        if self.values.choices:
            return distributions.CategoricalDistribution([stored(value) for value in self.values.choices])
        low, high, step = self.values.low, self.values.high, self.values.step
        if self.whole:
            return distributions.IntDistribution(
                int(low or 0), int(high or 0), log=self.values.log, step=int(step or 1)
            )
        return distributions.FloatDistribution(float(low or 0), float(high or 0), log=self.values.log, step=step)

    @property
    def extremes(self) -> list[Any]:
        """Its choices, or its ends: if they can be used, all between them can."""
        if self.values.choices:
            return list(self.values.choices)
        return [int(end or 0) if self.whole else float(end or 0) for end in (self.values.low, self.values.high)]

    def value_of(self, proposed: Any) -> Any:
        """A value as the config takes it, of one that Optuna proposes."""
        if not self.values.choices:
            return proposed
        return next(value for value in self.values.choices if stored(value) == proposed)


def stored(value: Any) -> Any:
    """A choice as Optuna can keep it: a class with its settings, or a list, as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def parameters_of(settings: SweepSettings, config: dict[str, Any], file: str) -> list[Parameter]:
    """Find the settings of a sweep in its config.

    Args:
        settings: The sweep's.
        config: Resolved.
        file: The sweep's, to name the line of a mistake.

    Raises:
        UserError: If a setting does not exist, or is not a sweep's to vary.
    """
    there = dict(keys_of(config))
    paths: dict[str, str] = {}
    for key in settings.ranges:
        short = key.replace(".init_args", "")
        if short not in there:
            raise UserError(f"{missing(key, short, config, there)}: {settings.place(key, file)}.")
        if short.split(".")[0] not in TOP:
            raise UserError(f"'{key}' is not below trainer, model or data: {settings.place(key, file)}.")
        if any(f"{short}.".startswith(f"{own}.") for own in OWN):
            raise UserError(f"The sweep sets {short} itself: {settings.place(key, file)}.")
        if short in INTERVALS and settings.validations is not None:
            raise UserError(f"'validations' of the sweep sets {short}: set validations: null to vary it.")
        for other in paths:
            if f"{short}.".startswith(f"{other}.") or f"{other}.".startswith(f"{short}."):
                raise UserError(f"'{key}' and '{other}' are settings of one another: {settings.place(key, file)}.")
        paths[short] = there[short]
    names = short_names(list(paths))
    return [
        make_parameter(key, path, name, values, value_at(config, path))
        for (key, values), path, name in zip(settings.ranges.items(), paths.values(), names, strict=True)
    ]


def make_parameter(key: str, path: str, name: str, values: Range, present: Any) -> Parameter:
    """A parameter; whether its numbers are whole goes by what the setting is now, else by how they are written."""
    if values.choices:
        choices = values.choices
        if isinstance(present, int | float) and not isinstance(present, bool):
            # YAML takes 1e-3 for a word.
            choices = tuple(choice if as_number(choice) is None else as_number(choice) for choice in choices)
        return Parameter(key, path, name, Range(choices=choices), False)
    whole = values.is_whole and not isinstance(present, float) and isinstance(values.step or 1, int)
    return Parameter(key, path, name, values, whole)


def keys_of(value: Any, short: str = "", path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of a resolved config: the key as a person names it, without init_args, and the whole one."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        value, path = value.get("init_args") or {}, f"{path}.init_args"
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = ((str(place), item) for place, item in enumerate(value))  # type: ignore[assignment]
    else:
        return
    for name, inner in parts:
        key, whole = (f"{prefix}.{name}" if prefix else str(name) for prefix in (short, path))
        yield key, whole
        yield from keys_of(inner, key, whole)


def value_at(config: dict[str, Any], path: str) -> Any:
    """What a whole key is set to."""
    place: Any = config
    for part in path.split("."):
        place = place[int(part)] if isinstance(place, list) else place[part]
    return place


def missing(key: str, short: str, config: dict[str, Any], there: dict[str, str]) -> str:
    """What is said of a key that is not there."""
    above = short
    while "." in above:
        above = above.rpartition(".")[0]
        if above in there:
            if value_at(config, there[above]) is None:
                return f"There is no setting '{key}' while {above} is null, which the sweep's overrides can set"
            break
    return f"There is no setting '{key}'{closest(short, list(there))}"


def short_names(keys: list[str]) -> list[str]:
    """The last parts of dotted keys, as many as tell them apart."""
    names = []
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{name}") for other in keys) == 1:
                break
        names.append(name)
    return names


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config with values at whole keys."""
    changed = copy.deepcopy(config)
    for path, value in values.items():
        set_value(changed, path, value)
    return changed


def extreme_configs(config: dict[str, Any], parameters: list[Parameter]) -> list[tuple[list[tuple[str, str]], dict]]:
    """Configs that have every end and every choice among them, few since each has one of all parameters.

    Returns:
        For each, the keys with the values that it has, as shown, and the config.
    """
    configs = []
    for place in range(max(len(parameter.extremes) for parameter in parameters)):
        chosen = [(one, one.extremes[place]) for one in parameters if place < len(one.extremes)]
        configs.append(
            (
                [(one.key, shown(value)) for one, value in chosen],
                with_values(config, {one.path: value for one, value in chosen}),
            )
        )
    return configs


def single_configs(config: dict[str, Any], parameters: list[Parameter]) -> list[tuple[list[tuple[str, str]], dict]]:
    """As `extreme_configs`, each with one end or choice alone, to tell whose fault it is."""
    return [
        ([(one.key, shown(value))], with_values(config, {one.path: value}))
        for one in parameters
        for value in one.extremes
    ]
