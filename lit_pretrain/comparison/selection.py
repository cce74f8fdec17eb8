"""Which runs are meant: by what a person calls them, or by experiment, condition and how late they are."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_pretrain.comparison.runs import MEASURING, Run, RunStore
from lit_pretrain.errors import UserError, nearest, without_credentials
from lit_pretrain.tracking.find import SHORTEST_PREFIX, RunRecord, checkpoints_of, find_run, list_runs
from lit_pretrain.tracking.paths import RUN_FILE_NAME, resolve_runs_directory, shown_path
from lit_pretrain.tracking.store import address_of, open_store, resolve_tracking_uri

LAST = "last"
# How many runs are meant where nothing says which.
DEFAULT_COUNT = 10


def select(
    references: Sequence[str],
    runs_directory: str | Path | None = None,
    experiments: Sequence[str] = (),
    last: int | None = None,
    where: str | None = None,
) -> tuple[RunStore, list[Run]]:
    """Find runs in the store that has them.

    Args:
        references: Ids, beginnings of ids, names, directories, or "last"; what measures a run's checkpoint stands for
            that run. None for the trainings that the other arguments say.
        runs_directory: Null takes $LIT_PRETRAIN_RUNS, else ./runs.
        experiments: Only those of these; of several runs that a reference fits, those of the only one are meant.
        last: Only so many of the latest; null for 10 if nothing else says which.
        where: A condition in MLflow's filter syntax, on the trainings or on what measured their checkpoints.

    Returns:
        The store and the runs, each once.

    Raises:
        UserError: If a run is not there or ambiguous, two are in different stores, or none fits.
    """
    directory = resolve_runs_directory(runs_directory)
    if last is not None and last < 1:
        raise UserError(f"--last is {last}: give at least 1.")
    if references:
        if last is not None or where is not None:
            raise UserError(
                f"--{'last' if last is not None else 'where'} chooses runs by itself: leave it out, or the runs' names."
            )
        if len(experiments) > 1:
            raise UserError("--experiment says in which one the named runs are: give it once, or leave the names out.")
        return named(references, directory, experiments[0] if experiments else None)
    store = open_existing(resolve_tracking_uri(None, directory), directory)
    places = [experiment_id(store, experiment) for experiment in experiments] or None
    if last is None and where is None and not experiments:
        last = DEFAULT_COUNT
    runs = []
    for run in trainings(store.filtered(where or "", places), store, anything=where is not None):
        runs.append(run)
        if len(runs) == last:
            break
    if not runs:
        fits = f' that meets --where "{where}"' if where else ""
        names = " or ".join(f"'{experiment}'" for experiment in experiments)
        place = f"experiment {names}" if experiments else without_credentials(address(store))
        raise UserError(f"There is no training in {place}{fits}: train one, or name runs.")
    return store, runs


def trainings(runs: Iterable[Run], store: RunStore, anything: bool) -> Iterable[Run]:
    """Those of some runs that train, each once.

    Args:
        runs: Which.
        store: Where they are.
        anything: Whether what measured a training's checkpoint stands for it; else it is left out.
    """
    found = set()
    for run in runs:
        if run.source_id is not None and anything:
            run = store.run(run.source_id) or run
        # A study's own run has neither settings nor a stage.
        if run.run_id in found or run.deleted or run.stage in MEASURING or "study" in run.tags and not run.stage:
            continue
        found.add(run.run_id)
        yield run


def named(references: Sequence[str], directory: Path, experiment: str | None) -> tuple[RunStore, list[Run]]:
    """The runs of some references."""
    default = resolve_tracking_uri(None, directory)
    found: list[tuple[str, str, str]] = []
    elsewhere = []
    for reference in references:
        record = record_of(reference, directory, experiment)
        if record is None:
            elsewhere.append(reference)
        elif not record.tracking_uri:
            raise not_logged(reference, record, directory)
        else:
            found.append((reference, record.run_id, address_of(record)))
    addresses = list(dict.fromkeys(address for _, _, address in found)) or [default]
    if elsewhere and default not in addresses:
        addresses.append(default)
    if len(addresses) > 1:
        # One that is nowhere is the smaller mistake, and the other one's reason.
        for reference in elsewhere:
            in_store(reference, open_existing(default, directory), directory, experiment)
        first, other = (
            next((reference for reference, _, place in found if place == address), elsewhere[0] if elsewhere else "")
            for address in addresses[:2]
        )
        raise UserError(
            f"The run {first} is in {without_credentials(addresses[0])} and {other} in "
            f"{without_credentials(addresses[1])}: only runs of one tracking server or database can be compared."
        )
    store = open_existing(addresses[0], directory)
    runs: dict[str, Run] = {}
    ids = {reference: run_id for reference, run_id, _ in found}
    for reference in references:
        if reference in ids:
            run = store.run(ids[reference])
            if run is None:
                raise UserError(
                    f"The run {reference} ({ids[reference][:8]}) is no longer in "
                    f"{without_credentials(addresses[0])}, only its directory is left: give another run."
                )
        else:
            run = in_store(reference, store, directory, experiment)
        if run.source_id is not None:
            run = store.run(run.source_id) or run
        runs[run.run_id] = run
    return store, list(runs.values())


def not_logged(reference: str, record: RunRecord, directory: Path) -> UserError:
    """Why nothing can be shown of a run that MLflow does not have: where its files are, and what can be shown."""
    named = f"'{LAST}' is {record.run_name}, which" if reference == LAST else f"The run {record.run_name}"
    figures = sorted(record.directory.rglob("metrics.csv"))
    kept = f"its figures are in {shown_path(figures[-1])}" if figures else "its figures were kept nowhere"
    logged = next((one for one in list_runs(directory) if one.tracking_uri), None)
    other = f", the latest of which is {logged.run_name}" if logged is not None else ""
    return UserError(
        f"{named} was not logged to MLflow (trainer.logger was another or false), and {kept}: name a run that was"
        f"{other}, or train it with MLflowLogger."
    )


def record_of(reference: str, directory: Path, experiment: str | None) -> RunRecord | None:
    """The run of this machine that is meant; null if none here is called so.

    Raises:
        UserError: If several are.
    """
    records = list_runs(directory)
    if reference == LAST:
        trained = [record for record in list_runs(directory, experiment) if checkpoints_of(record)]
        if not trained:
            raise UserError(f"There is no run with a checkpoint in {shown_path(directory)}: train one first.")
        return trained[0]
    path = Path(reference).expanduser()
    here = (path / RUN_FILE_NAME).is_file() or any(
        reference in (record.run_id, record.run_name, record.directory.name)
        or len(reference) >= SHORTEST_PREFIX
        and record.run_id.startswith(reference)
        for record in records
    )
    return find_run(reference, directory, experiment, with_checkpoints=True) if here else None


def in_store(reference: str, store: RunStore, directory: Path, experiment: str | None) -> Run:
    """A run that has no directory here, as of another machine: by its id, the beginning of it, or its name.

    Raises:
        UserError: If there is none, or several are called so.
    """
    runs = [run for run in store.search() if not run.deleted]
    for matching in (
        [run for run in runs if run.run_id == reference],
        [run for run in runs if run.name == reference],
        [run for run in runs if len(reference) >= SHORTEST_PREFIX and run.run_id.startswith(reference)],
    ):
        for narrower in (
            [run for run in matching if run.stage not in MEASURING],
            [run for run in matching if run.experiment == experiment],
        ):
            matching = (narrower or matching) if len(matching) > 1 else matching
        if len(matching) == 1:
            return matching[0]
        if matching:
            listed = ", ".join(f"{run.run_id[:8]} ({run.experiment}/{run.name})" for run in matching[:6])
            more = f" and {len(matching) - 6} more" if len(matching) > 6 else ""
            raise UserError(f"'{reference}' fits {len(matching)} runs: say which, by id: {listed}{more}.")
    if any(run.experiment == reference for run in runs):
        raise UserError(
            f"No run is called '{reference}', which is an experiment: name one of its runs, or put all of them side by "
            f"side by compare --experiment {shlex.quote(reference)}."
        )
    names = [name for run in runs for name in (run.name, run.run_id)]
    names += [name for record in list_runs(directory) for name in (record.run_name, record.run_id)]
    raise UserError(
        f"No run in {shown_path(directory)} or {without_credentials(address(store))} is called "
        f"'{reference}'{nearest(reference, names)}."
    )


def open_existing(uri: str, directory: Path) -> RunStore:
    """Open a store that is there; looking at runs makes none.

    Raises:
        UserError: If it is not there or cannot be used.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.is_file():
        raise UserError(
            f"There is no {database.name} in {shown_path(database.parent)}: train a run first, or name the runs' "
            "directory with --runs."
        )
    return RunStore(open_store(uri, directory))


def experiment_id(store: RunStore, name: str) -> str:
    """The id of an experiment.

    Raises:
        UserError: If there is none of that name.
    """
    for found, other in store.experiments.items():
        if other == name:
            return found
    names = list(store.experiments.values())
    near = nearest(name, names)
    listed = f": there are {', '.join(names[:8])}" if not near and names else ""
    raise UserError(f"There is no experiment '{name}' in {without_credentials(address(store))}{near}{listed}.")


def address(store: RunStore) -> str:
    """The store's address."""
    return str(store.client.tracking_uri)
