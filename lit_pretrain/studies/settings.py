"""What a person says of a study: a YAML file read into dataclasses, a mistake being one sentence with its place."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from lit_pretrain.cli.config_errors import correct, find_key
from lit_pretrain.errors import UserError, check_length, check_number, nearest
from lit_pretrain.yaml_files import read_yaml

ALL = "all"
Amount = int | float | Literal["all"] | None
# How pydantic names them.
TYPES = ("int", "float", "str", "none")
BUDGETS = ("steps", "samples", "tokens", "flops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What every study has.

    Attributes:
        name: Name of the study; starting one of the same name goes on with it.
        experiment: MLflow's experiment, in which the study is a run and its cells are that run's children.
        overrides: Settings of all cells, by dotted or nested keys as on the command line.
        checkpoint: Which one is measured: `last`, or `best` by the trainer's own watch.
        validations: How often a training is validated, the last time at its end; fewer times where that does not
            divide its steps. Null keeps the config's own intervals.
        keep_checkpoints: Whether checkpoints of finished cells stay; hundreds of cells fill a disk.
    """

    # Pydantic reads it: a key that does not exist is a mistake.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # What a person is told that it is, and where files of its kind lie.
    noun: ClassVar[str] = "study"
    examples: ClassVar[str] = "configs/studies/"

    name: str
    experiment: str = "studies"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint: Literal["last", "best"] = "last"
    validations: int | None = 10
    keep_checkpoints: bool = False
    metric: str

    @property
    def configs(self) -> list[str]:
        """Files of settings of every cell, later ones win."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.name.strip():
            raise UserError(f"'name' is empty: give the {self.noun} a name.")
        if self.validations is not None and self.validations < 1:
            raise UserError(f"'validations' is {self.validations}: give at least 1, or null for the config's own.")
        stage = self.metric.partition("/")[0]
        if stage not in ("test", "validation"):
            raise UserError(f"'metric' is {self.metric}: give one of test/ or validation/, such as test/accuracy.")

    @property
    def evaluates_test(self) -> bool:
        """Whether the metric is of the test data, which is measured once a cell is trained."""
        return self.metric.startswith("test/")

    @property
    def validation_metric(self) -> str:
        """The metric's name on the validation data, whose history and choices it serves."""
        return "validation/" + self.metric.partition("/")[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelEfficiencySettings(StudySettings):
    """How good an encoder is after few labels, beside one from scratch.

    Attributes:
        fine_tuning: Config of FineTuning, or several that are laid over each other.
        encoders: Name -> the settings that make it, as `model.init_from` and `model.pretrained`.
        seeds: Each cell is trained with each of them.
        label_budgets: Numbers of labels, or shares of them below 1; `all` (or null, or 1.0) for all.
        learning_rates: Rates to choose from, for all encoders or by name; chosen on the validation data, for each
            budget, with the first seed.
        steps: Optimiser steps of a training, one number or one a budget; null keeps the config's.
        metric: What is compared; one of the test data is measured with the finished cell.
        target: A value of the metric; the steps to reach it on the validation data are told.
        reference: Encoder that labels are saved beside; null takes the first.
    """

    fine_tuning: str | list[str]
    encoders: dict[str, dict[str, Any] | None]
    label_budgets: list[Amount]
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    learning_rates: list[float] | dict[str, list[float]] | None = None
    steps: int | list[int] | None = None
    metric: str = "test/accuracy"
    target: float | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        check_list("fine_tuning", self.configs)
        check_list("seeds", self.seeds)
        check_list("encoders", list(self.encoders))
        check_amounts("label_budgets", self.label_budgets)
        if self.reference is not None and self.reference not in self.encoders:
            raise unknown_encoder("reference", self.reference, self.encoders)
        rates = self.learning_rates
        for name, values in rates.items() if isinstance(rates, dict) else [("", rates)] if rates is not None else []:
            if name and name not in self.encoders:
                raise unknown_encoder("learning_rates", name, self.encoders)
            check_list(f"learning_rates.{name}" if name else "learning_rates", values)
            for value in values:
                check_number("'learning_rates'", value, above=0)
        check_number("'target'", self.target)
        for steps in self.steps if isinstance(self.steps, list) else [self.steps]:
            check_number("'steps'", steps, least=1)
        if isinstance(self.steps, list) and len(self.steps) != len(self.label_budgets):
            raise UserError(
                f"'steps' has {len(self.steps)} numbers for {len(self.label_budgets)} label_budgets: give one for each."
            )

    @property
    def configs(self) -> list[str]:
        """The config files below all cells."""
        return [self.fine_tuning] if isinstance(self.fine_tuning, str) else self.fine_tuning

    @property
    def budgets(self) -> list[int | float | None]:
        """Label budgets as the data module takes them."""
        return [as_number(budget) for budget in self.label_budgets]

    @property
    def resolved_reference(self) -> str:
        """Name of the encoder that the others are compared with."""
        return self.reference or next(iter(self.encoders))

    def rates_of(self, encoder: str) -> list[float | None]:
        """Learning rates to choose from; only null if the config's is kept."""
        rates = self.learning_rates
        chosen = rates.get(encoder) if isinstance(rates, dict) else rates
        return list(chosen) if chosen else [None]

    def steps_of(self, budget: int) -> int | None:
        """Steps of the training at the budget of this place in the list."""
        return self.steps[budget] if isinstance(self.steps, list) else self.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings(StudySettings):
    """What width, depth and data buy under one budget.

    Attributes:
        pretraining: Config of a pretraining, or several that are laid over each other.
        widths: Widths of the Transformer.
        depths: Depths of the Transformer.
        data_sizes: Training documents or pictures, or shares of them below 1; `all` for all. The validation data is
            the same in all cells.
        budget: What every cell may spend: one of steps, samples, tokens or flops (operations of training).
        seeds: Each cell is trained with each of them.
        metric: The loss that is compared.
    """

    pretraining: str | list[str]
    widths: list[int]
    depths: list[int]
    data_sizes: list[Amount] = dataclasses.field(default_factory=lambda: ["all"])
    budget: dict[str, float]
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    validations: int | None = 1
    metric: str = "validation/loss"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        check_list("pretraining", self.configs)
        check_list("seeds", self.seeds)
        check_list("widths", self.widths, least=1)
        check_list("depths", self.depths, least=1)
        check_amounts("data_sizes", self.data_sizes)
        if len(self.budget) != 1:
            raise UserError(f"'budget' names {len(self.budget)} things: give one of {', '.join(BUDGETS)}.")
        (kind,) = self.budget
        if kind not in BUDGETS:
            raise UserError(f"'budget' has no '{kind}'{nearest(kind, BUDGETS)}: give one of {', '.join(BUDGETS)}.")
        check_number(f"'budget' of {kind}", self.budget[kind], above=0)

    @property
    def configs(self) -> list[str]:
        """The config files below all cells."""
        return [self.pretraining] if isinstance(self.pretraining, str) else self.pretraining

    @property
    def sizes(self) -> list[int | float | None]:
        """Data sizes as the data module takes them."""
        return [as_number(size) for size in self.data_sizes]


def as_number(amount: Amount) -> int | float | None:
    """An amount as the data module takes it: null for all."""
    return None if isinstance(amount, str) or is_all(amount) else amount


def is_all(amount: Amount) -> bool:
    """Whether all data is meant; 1 is one label, 1.0 all of them."""
    return amount is None or amount == ALL or (isinstance(amount, float) and amount == 1.0)


def check_list(name: str, values: list, least: float | None = None) -> None:
    """A list must hold something, nothing twice, and nothing below `least`."""
    if not values:
        raise UserError(f"'{name}' is empty: give at least one.")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise UserError(f"'{name}' has {repeated[0]} twice: keep one.")
    if least is not None and min(values) < least:
        raise UserError(f"'{name}' has {min(values)}: give numbers from {least:g} on.")


def check_amounts(name: str, amounts: list[Amount]) -> None:
    """Amounts of data must be above 0, and none twice."""
    check_list(name, [ALL if is_all(amount) else amount for amount in amounts])
    for amount in amounts:
        if not is_all(amount):
            check_length(f"'{name}'", as_number(amount), above_zero=True)


def unknown_encoder(key: str, name: str, encoders: dict[str, Any]) -> UserError:
    """What is said of a name that no encoder has."""
    return UserError(f"'{key}' names the encoder '{name}', which is not among encoders{nearest(name, encoders)}.")


Settings = TypeVar("Settings", bound=StudySettings)


def read_settings(path: str, kind: type[Settings]) -> Settings:
    """Read a study's file.

    Args:
        path: The YAML file.
        kind: Which study.

    Raises:
        UserError: If it cannot be read, a key or a value is wrong, or the study cannot be run.
    """
    from pydantic import TypeAdapter, ValidationError

    content = read_yaml(path, kind.noun)
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(content, dict):
        raise UserError(f"The {kind.noun} {path} holds no settings: give {', '.join(names)}.")
    content = {"name": Path(path).stem} | content
    try:
        return TypeAdapter(kind).validate_python(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UserError(explain(error.errors()[0], path, names, kind)) from error


def explain(problem: Mapping[str, Any], path: str, names: list[str], kind: type[StudySettings]) -> str:
    """Pydantic's finding as a sentence."""
    key = str(problem["loc"][0])
    place = correct(find_key(key, [path]))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"There is no setting '{key}' of a {kind.noun}{nearest(key, names)}: {place}."
    if problem["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"The {kind.noun} {path} lacks '{key}': set it, or start from one of the files in {kind.examples}."
    where = ".".join(str(part) for part in problem["loc"] if not is_type(part))
    return f"'{where}' is {problem['input']!r} ({problem['msg'][:1].lower()}{problem['msg'][1:]}): {place}."


def is_type(part: int | str) -> bool:
    """Whether a part of where pydantic found something is one of the types that it tried there, not a key."""
    return part in TYPES or (isinstance(part, str) and part.startswith(("list[", "dict[", "literal[")))
