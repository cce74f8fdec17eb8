"""A sweep: many trainings of one config with other settings, proposed by Optuna, to find the best on validation data.

Optuna (Akiba et al. 2019, arXiv:1907.10902) proposes the settings, by default by tree-structured Parzen estimators
(Bergstra et al. 2011), and ends trials early whose validation figure is below the median of the others' at that step.
What a trial proposes is a function of the sweep's seed, its number and the trials before it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.studies import processes
from lit_pretrain.studies.cells import Cell, without_places
from lit_pretrain.studies.plan import Prepared, make_cell, prepare_all
from lit_pretrain.studies.sweep_settings import SweepSettings, make_pruner, make_sampler, require_optuna
from lit_pretrain.studies.sweep_space import Parameter, extreme_configs, parameters_of, single_configs, stored

# A run's directory has its name, and a file system takes 255 characters.
LONGEST_NAME = 120


class Sweep:
    """The sweep, with its config resolved and all values checked.

    Args:
        settings: What was asked for.
        file: The sweep's.

    Raises:
        UserError: If a setting does not exist, or one of its values cannot be used.
    """

    def __init__(self, settings: SweepSettings, file: str) -> None:
        require_optuna()
        make_sampler(settings.sampler, 0)
        make_pruner(settings.pruner)
        self.settings, self.file = settings, file
        (self.prepared,) = prepare_all(settings, {f"The sweep {settings.name}": {}}).values()
        self.parameters: list[Parameter] = parameters_of(settings, self.prepared[0], file)
        self.check_values()

    def check_values(self) -> None:
        """Make what the config names with every choice and every end of a range."""
        for configs in (extreme_configs, single_configs):
            tried = configs(self.prepared[0], self.parameters)
            fault = processes.call(first_fault, [config for _, config in tried], log=Path(os.devnull))
            if fault is None:
                # What only several values together cannot do is left to the trials.
                return
        place, reason = fault
        ((key, value),) = tried[place][0]
        where = self.settings.place(key, self.file)
        reason = reason.replace("correct the config or the command line", where).rstrip(".")
        raise UserError(f"'{key}' cannot be {value}: {reason}{'' if where in reason else f' ({where})'}.")

    @property
    def distributions(self) -> dict[str, Any]:
        """The parameters as Optuna knows them."""
        return {parameter.key: parameter.distribution for parameter in self.parameters}

    @property
    def identity(self) -> dict[str, str]:
        """What makes trials comparable; see `trials.open_study`."""
        config, inputs = self.prepared
        base = [without_places(config), inputs, self.settings.validations, self.settings.checkpoint]
        text = json.dumps(base, sort_keys=True, default=str)
        ranges = {f"range of {one.key}": str(one.distribution) for one in self.parameters}
        return {
            "metric": self.settings.metric,
            "direction": "maximize" if self.settings.maximizes else "minimize",
            "seed": str(self.settings.seed),
            "config or data": hashlib.sha256(text.encode()).hexdigest(),
            **ranges,
        }

    def base_cell(self) -> Cell:
        """The config as it is, for a rehearsal."""
        labels = {"sweep": self.settings.name}
        return make_cell(self.settings, self.prepared, labels, self.settings.seed, None, {})

    def is_whole(self, trial: Any) -> bool:
        """Whether all values of one of Optuna's trials were proposed before whatever ended its process."""
        return all(one.key in trial.params for one in self.parameters)

    def cell(self, number: int, proposed: dict[str, Any]) -> Cell:
        """The training of a trial.

        Args:
            number: The trial's.
            proposed: Values by the parameters' keys, as Optuna has them.
        """
        values = {one.path: one.value_of(proposed[one.key]) for one in self.parameters}
        labels: dict[str, Any] = {"trial": number}
        named = labels | {one.name: brief(proposed[one.key]) for one in self.parameters}
        if sum(len(f"{name} {value}, ") for name, value in named.items()) <= LONGEST_NAME:
            labels = named
        config, inputs = self.prepared
        # Two trials may have the same values.
        prepared: Prepared = (config, f"{inputs} trial: {number}")
        return make_cell(self.settings, prepared, labels, self.settings.seed, None, values)


def brief(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(stored(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


def first_fault(configs: list[dict[str, Any]]) -> tuple[int, str] | None:
    """As `config_check.first_fault`, which is imported where it runs, with torch."""
    from lit_pretrain.studies import config_check

    return config_check.first_fault(configs)
