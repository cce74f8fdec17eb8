"""What a person says of a sweep: a YAML file with the settings to vary, their ranges, and how many trials."""

import dataclasses
import difflib
import importlib
import inspect
import json
import math
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from lit_pretrain.cli.config_errors import correct, walk
from lit_pretrain.errors import UserError, check_number, nearest
from lit_pretrain.studies.settings import StudySettings, check_list
from lit_pretrain.tracking.best import direction

RANGE_KEYS = ("low", "high", "log", "step", "choices")
DIRECTIONS = ("minimize", "maximize")


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a setting may take: numbers from low to high, or one of some choices.

    Attributes:
        low: Smallest number; null with choices.
        high: Largest number; null with choices.
        log: Whether numbers are drawn by their logarithms.
        step: Between numbers; null for any number.
        choices: The values; empty with numbers.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it is written in whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(StudySettings):
    """Values of settings that are searched for by many trainings.

    Attributes:
        config: Config of `fit`, or several that are laid over each other.
        parameters: Setting -> its values: `{low, high, log, step}`, `{choices: [...]}` or a list of choices. A setting
            goes by its dotted key, as on the command line; an item of a list by its place.
        trials: Trainings of the whole sweep, over all starts of it; null for no limit.
        timeout: Time after which a start of the sweep begins no more trials, as `2h`; null for none.
        metric: Figure of the validation that is searched by.
        direction: `minimize` or `maximize`; null goes by the metric's name.
        seed: Of the search, and of every training unless its config's `seed_everything` is varied.
        sampler: Optuna's, which proposes values: its name, or `{class_path, init_args}`.
        pruner: Optuna's, which ends trials that promise little, as the sampler; null for none.
    """

    noun: ClassVar[str] = "sweep"
    examples: ClassVar[str] = "configs/sweeps/"

    config: str | list[str]
    parameters: dict[str, Any]
    experiment: str = "sweeps"
    trials: int | None = None
    timeout: str | None = None
    direction: str | None = None
    seed: int = 0
    sampler: str | dict[str, Any] = "TPESampler"
    pruner: str | dict[str, Any] | None = "MedianPruner"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.metric.startswith("test/"):
            raise UserError(
                f"'metric' is {self.metric}, and what is chosen by test data is no longer measured by it: give "
                f"{self.validation_metric}."
            )
        if not self.metric.startswith("validation/"):
            raise UserError(f"'metric' is {self.metric}: give a figure of the validation, such as validation/loss.")
        super().__post_init__()
        check_list("config", self.configs)
        check_number("'trials'", self.trials, least=1)
        check_number("'seed'", self.seed, least=0)
        if self.trials is None and self.timeout is None:
            raise UserError("Neither 'trials' nor 'timeout' is given, so that the sweep has no end: give one.")
        if self.timeout is not None:
            self.seconds()
        if self.direction not in (None, *DIRECTIONS):
            raise UserError(f"'direction' is {self.direction}: give one of {', '.join(DIRECTIONS)}.")
        if self.direction is None and direction(self.metric) is None:
            raise UserError(
                f"The name of the metric {self.metric} does not tell whether more is better: set 'direction' to "
                f"{' or '.join(DIRECTIONS)}."
            )
        if not self.parameters:
            raise UserError("'parameters' is empty: give at least one setting with its values.")
        _ = self.ranges

    @property
    def configs(self) -> list[str]:
        """The config files below all trials."""
        return [self.config] if isinstance(self.config, str) else self.config

    @property
    def maximizes(self) -> bool:
        """Whether more is better."""
        return (self.direction or direction(self.metric)) in ("maximize", "max")

    @property
    def ranges(self) -> dict[str, Range]:
        """The settings with their values."""
        return {key: read_range(key, content) for key, content in self.parameters.items()}

    def seconds(self) -> float | None:
        """The timeout."""
        # Imported late: the sweep's own process starts without torch.
        from lit_pretrain.modules.clock import seconds_of

        return None if self.timeout is None else seconds_of(self.timeout, "'timeout'")

    def place(self, key: str, path: str) -> str:
        """What to correct: the line of the sweep's file that names a setting."""
        return correct(next((place for name, _, place in walk(path) if name == key), None))


def read_range(key: str, content: Any) -> Range:
    """A range as a person writes it.

    Raises:
        UserError: If it is none, or empty.
    """
    if isinstance(content, list):
        content = {"choices": content}
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"The values of '{key}' are {shown(content)}: give {{low: ..., high: ...}} or a list of choices."
        )
    for name in content:
        if name not in RANGE_KEYS:
            raise UserError(
                f"The values of '{key}' have no '{name}'{nearest(str(name), RANGE_KEYS)}: give low and high (with log "
                "or step), or choices."
            )
    if "choices" in content:
        return read_choices(key, content)
    low, high = (read_number(key, name, content.get(name)) for name in ("low", "high"))
    step = None if content.get("step") is None else read_number(key, "step", content["step"])
    log = content.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"'log' of '{key}' is {shown(log)}: give true or false.")
    if low >= high:
        raise UserError(f"The range of '{key}' is empty (low {low:g}, high {high:g}): let high be above low.")
    if log and low <= 0:
        raise UserError(f"The range of '{key}' begins at {low:g}, which has no logarithm: let low be above 0.")
    if step is not None:
        check_number(f"'step' of '{key}'", step, above=0, most=high - low)
        if log:
            raise UserError(f"The range of '{key}' has a step and log: leave one of the two out.")
    return Range(low, high, log, step)


def read_choices(key: str, content: dict[str, Any]) -> Range:
    """Choices as a person writes them."""
    choices = content["choices"]
    if len(content) > 1:
        other = next(name for name in content if name != "choices")
        raise UserError(f"The values of '{key}' have choices and {other}: leave one of the two out.")
    if not isinstance(choices, list):
        raise UserError(f"The choices of '{key}' are {shown(choices)}: give a list.")
    # 1 and true, 1 and 1.0 are equal to Python, not to a config.
    check_list(f"choices of {key}", [shown(choice) for choice in choices])
    return Range(choices=tuple(choices))


def read_number(key: str, name: str, value: Any) -> float:
    """One end of a range; YAML takes 1e-3 for a word."""
    if value is None:
        raise UserError(f"The range of '{key}' lacks '{name}': give low and high, or a list of choices.")
    number = as_number(value)
    if number is None:
        raise UserError(f"'{name}' of '{key}' is {shown(value)}: give a number.")
    if not math.isfinite(number):
        raise UserError(f"'{name}' of '{key}' is {number}: give a finite number.")
    return number


def as_number(value: Any) -> int | float | None:
    """A number, also one that YAML took for a word, such as 1e-3; null for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def shown(value: Any) -> str:
    """A value as a config has it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def make_sampler(chosen: str | dict[str, Any], seed: int) -> Any:
    """One of Optuna's samplers.

    Args:
        chosen: As in the settings.
        seed: If it takes one and the settings give none.

    Raises:
        UserError: If there is no such sampler, or it cannot be made so.
    """
    from optuna import samplers

    return make_part(samplers, samplers.BaseSampler, "sampler", chosen, {"seed": seed})


def make_pruner(chosen: str | dict[str, Any] | None) -> Any:
    """One of Optuna's pruners, as `make_sampler`; null ends no trial."""
    from optuna import pruners

    return make_part(pruners, pruners.BasePruner, "pruner", chosen or "NopPruner", {})


def make_part(
    module: ModuleType, base: type, setting: str, chosen: str | dict[str, Any], defaults: Mapping[str, Any]
) -> Any:
    """An object of a module of Optuna's."""
    content: dict[str, Any] = {"class_path": chosen} if isinstance(chosen, str) else chosen
    if wrong := next((key for key in content if key not in ("class_path", "init_args")), None):
        raise UserError(f"'{setting}' has no '{wrong}': give class_path and init_args.")
    name, arguments = str(content.get("class_path")).rpartition(".")[2], content.get("init_args") or {}
    kinds = [kind for kind in module.__all__ if kind != base.__name__ and inspect.isclass(getattr(module, kind))]
    if name not in kinds:
        raise UserError(
            f"Optuna has no {setting} '{name}'{nearest(name, kinds)}: set '{setting}' to one of {', '.join(kinds)}."
        )
    kind = getattr(module, name)
    known = inspect.signature(kind).parameters
    for key in arguments:
        if key not in known:
            raise UserError(f"{name} has no setting '{key}'{nearest(key, known)}: correct '{setting}'.")
    arguments = {key: value for key, value in defaults.items() if key in known} | arguments
    try:
        with warnings.catch_warnings():
            # That some of them may change is for whoever writes code with them.
            warnings.simplefilter("ignore")
            return kind(**arguments)
    except ImportError as error:
        missing = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{name} needs a package that is missing ({missing}): install it.") from error
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"{name} cannot be made ({reason}): correct '{setting}'.") from error


def closest(key: str, keys: list[str]) -> str:
    """As `nearest`, but first among keys that end in the same name, which may stand elsewhere."""
    leaf = key.rpartition(".")[2]
    same = [other for other in keys if other.rpartition(".")[2] == leaf]
    if same:
        best = max(same, key=lambda other: difflib.SequenceMatcher(None, key, other).ratio())
        return f" (did you mean '{best}'?)"
    return nearest(key, keys)


def require_optuna() -> None:
    """See that Optuna is there, and let it be silent: what it has to say is said in our own words.

    Raises:
        UserError: If it is not installed.
    """
    try:
        importlib.import_module("optuna").logging.set_verbosity(40)
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("A sweep needs Optuna: pip install 'lit_pretrain[sweep]'.") from error
