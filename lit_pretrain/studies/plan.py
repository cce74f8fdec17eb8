"""What every study does with its cells before they are trained."""

import copy
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.studies import processes
from lit_pretrain.studies.cell_configs import check_test_data, prepare
from lit_pretrain.studies.cells import Cell
from lit_pretrain.studies.overrides import arguments_of
from lit_pretrain.studies.settings import StudySettings

# A resolved config, and what changes with the contents of its data and of the weights that it starts from.
Prepared = tuple[dict[str, Any], str]


def prepare_all(settings: StudySettings, variants: dict[str, dict[str, Any]]) -> dict[str, Prepared]:
    """Resolve the study's config with each variant's overrides, in a process of its own.

    Args:
        settings: The study's, with its config files and overrides.
        variants: Name -> overrides over them.

    Raises:
        UserError: If a config is wrong, starts from what is not there, or has no test data that the metric needs.
    """
    base = arguments_of(settings.overrides)
    requests = [(name, settings.configs, base + arguments_of(overrides)) for name, overrides in variants.items()]
    prepared = dict(zip(variants, processes.call(prepare, requests), strict=True))
    if settings.evaluates_test:
        for name, (config, _) in prepared.items():
            check_test_data(name, config, settings.metric)
    return prepared


def make_cell(
    settings: StudySettings,
    prepared: Prepared,
    labels: dict[str, Any],
    seed: int,
    steps: int | None,
    changes: dict[str, Any],
) -> Cell:
    """One training.

    Args:
        settings: The study's.
        prepared: Config, and its inputs.
        labels: What the cell is.
        seed: Of all its draws.
        steps: Its length; null keeps the config's.
        changes: Dotted key -> value, such as "data.init_args.label_budget".
    """
    config, inputs = copy.deepcopy(prepared[0]), prepared[1]
    config["seed_everything"] = seed
    for key, value in changes.items():
        set_value(config, key, value)
    trainer = config["trainer"]
    if steps is not None:
        # With few labels an epoch is a few steps, and the epochs of the config would be over long before.
        trainer |= {"max_steps": steps, "max_epochs": None}
    if settings.validations is not None and (total := trainer.get("max_steps") or -1) > 0:
        accumulated = trainer.get("accumulate_grad_batches") or 1
        trainer |= {
            "val_check_interval": interval(total, settings.validations) * accumulated,
            "check_val_every_n_epoch": None,
        }
    stage = "test" if settings.evaluates_test else "validation"
    return Cell(labels | {"seed": seed}, config, inputs, stage, settings.checkpoint)


def interval(steps: int, validations: int) -> int:
    """Steps between validations, so that the last one is at the end."""
    count = next(count for count in range(min(validations, steps), 0, -1) if steps % count == 0)
    return steps // count


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key that is there; of a list, an item goes by its place.

    Raises:
        UserError: If it is not.
    """
    *path, last = key.split(".")
    place: Any = config
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place.get(part) if isinstance(place, dict) else None
    if isinstance(place, list):
        place[int(last)] = value
    elif isinstance(place, dict) and last in place:
        place[last] = value
    else:
        short_key = key.replace(".init_args", "")
        raise UserError(f"The config has no {short_key}, which this study varies: use a class that has it.")
