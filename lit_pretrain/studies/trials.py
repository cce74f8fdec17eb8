"""Optuna's store of a sweep's trials: a database in the sweep's directory, which any number of processes may use."""

import warnings
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.studies.sweep_settings import SweepSettings, make_pruner, require_optuna

STORE_NAME = "optuna.db"
SETTINGS_KEY = "lit_pretrain"
# Of a trial: the step at which it was ended early.
PRUNED_KEY = "pruned at step"
# A writer waits for another one's write.
LOCK_SECONDS = 60


def store_address(directory: Path) -> str:
    """The store of the sweep with this directory."""
    return f"sqlite:///{directory / STORE_NAME}"


def open_storage(address: str) -> Any:
    """Connect to a store, making a new one if there is none.

    Raises:
        UserError: If the file is no store.
    """
    require_optuna()
    from optuna.storages import RDBStorage

    try:
        return RDBStorage(address, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    except Exception as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200].rstrip(".")
        raise UserError(
            f"The sweep's trials in {address.removeprefix('sqlite:///')} cannot be read ({reason}): move its directory "
            "away, or give the sweep another name."
        ) from error


def open_study(directory: Path, settings: SweepSettings, identity: dict[str, str]) -> Any:
    """The sweep's study in Optuna's store, made if there is none; for one process at a time.

    Args:
        directory: The sweep's.
        settings: Its own.
        identity: What makes trials comparable, by what it is called; the same at every start of the sweep.

    Raises:
        UserError: If the sweep has trials with others.
    """
    import optuna

    study = find_study(directory, settings, identity)
    if study is not None:
        return study
    storage = open_storage(store_address(directory))
    if settings.name in optuna.get_all_study_names(storage):
        # Nothing was measured with the others: what was refused before its first trial may be corrected.
        optuna.delete_study(study_name=settings.name, storage=storage)
    study = optuna.create_study(
        storage=storage,
        study_name=settings.name,
        direction="maximize" if settings.maximizes else "minimize",
        pruner=make_pruner(settings.pruner),
    )
    study.set_user_attr(SETTINGS_KEY, identity)
    return study


def find_study(directory: Path, settings: SweepSettings, identity: dict[str, str]) -> Any | None:
    """As `open_study`, but null where there is none yet, or one of others that has no trial."""
    import optuna

    storage = open_storage(store_address(directory))
    if settings.name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=settings.name, storage=storage, pruner=make_pruner(settings.pruner))
    before = study.user_attrs.get(SETTINGS_KEY, {})
    if before == identity:
        return study
    if not study.get_trials(deepcopy=False):
        return None
    for name in [*identity, *before]:
        if before.get(name) != identity.get(name):
            was = f" (it was {before[name]})" if len(str(before.get(name, ""))) in range(1, 100) else ""
            raise UserError(
                f"The sweep {settings.name} was begun with another {name}{was}, so that its trials do not compare: "
                "give this one another name, or restore it."
            )
    return study


def open_trial(address: str, study: str, trial_id: int, pruner: str | dict[str, Any] | None) -> Any:
    """A trial that is going on, to report to and to ask; for its own process."""
    import optuna

    storage = open_storage(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.Trial(optuna.load_study(study_name=study, storage=storage, pruner=make_pruner(pruner)), trial_id)


def pruned_at(trial: Any) -> int | None:
    """The step at which a trial was ended early; null if it was not, or was killed then and went on after."""
    step = trial.user_attrs.get(PRUNED_KEY)
    return step if step == trial.last_step else None
