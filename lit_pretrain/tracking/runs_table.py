"""The columns with which an experiment's table of runs is opened: those that MLflow's page would take as a saved view.

MLflow keeps a saved view as a tag of the experiment, lists it under "Views", and opens it by its name in the address;
columns that no view names are a matter of each browser. None is opened by itself (3.17), so that the description of the
experiment, which stands above its runs, has a link. A view that a person has changed on the page is left alone.
"""

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

VIEW_NAME = "Figures"
VIEW_KEY = "lit_pretrain"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
# Before the figures, and after them; MLflow puts attributes first, and each takes room from the figures.
FIRST = ("attributes.`Dataset`",)
REST = (
    "metrics.`throughput/total_hours`",
    "params.`model_facts.init_from`",
    "params.`model_facts.parameters`",
    "params.`model.optimizer.learning_rate`",
    "params.`data.batch_size`",
)
# More of them are no longer seen at once.
MOST_FIGURES = 8


def with_columns(tag: str | None, metrics: Sequence[str], now: int, tags: Sequence[str] = ()) -> str | None:
    """The view of an experiment with columns for some metrics.

    Args:
        tag: As the store has it; null for none.
        metrics: Names.
        now: Milliseconds since 1970.
        tags: Names of tags that have columns too.

    Returns:
        What the tag should be: as it is, if it has them all or is a person's.
    """
    figures, created = [], now
    if tag is not None:
        try:
            view = json.loads(tag)
            columns = list(json.loads(view["state"])["selectedColumns"])
            figures = [column for column in columns if column not in (*FIRST, *REST)]
            changed = view["updatedAt"] != view["createdAt"] or view["name"] != VIEW_NAME
            created = int(view["createdAt"])
        except (ValueError, KeyError, TypeError):
            # Compressed by the page, when a person saved it.
            return tag
        if changed:
            return tag
    named = [("metrics", name) for name in metrics] + [("tags", name) for name in tags]
    new = [f"{kind}.`{name}`" for kind, name in named if "`" not in name]
    figures = list(dict.fromkeys([*figures, *new]))[:MOST_FIGURES]
    state = {"selectedColumns": [*FIRST, *figures, *REST]}
    return json.dumps({"name": VIEW_NAME, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})


def note_of_experiment(experiment_id: str) -> str:
    """What stands on MLflow's page of an experiment: the way to the view."""
    address = table_address("", experiment_id).lstrip("/")
    return f"[{VIEW_NAME}]({address}): the table of runs with the columns that matter."


def table_address(base: str, experiment_id: str) -> str:
    """Where MLflow's page shows an experiment's runs with these columns.

    Args:
        base: Of the server.
        experiment_id: Which.
    """
    query = f"viewStateShareKey={VIEW_KEY}&workflowType=machine_learning"
    return f"{base.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?{query}"


def latest_experiment(database: Path) -> tuple[str, str] | None:
    """Id and name of the experiment with the latest run among those that have the view.

    Args:
        database: MLflow's, which is asked without MLflow, since that is slow to load.
    """
    question = (
        "SELECT experiments.experiment_id, experiments.name FROM runs JOIN experiments USING (experiment_id) "
        "JOIN experiment_tags USING (experiment_id) WHERE experiment_tags.key = ? "
        "AND runs.lifecycle_stage = 'active' ORDER BY runs.start_time DESC LIMIT 1"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            found = connection.execute(question, (VIEW_TAG,)).fetchone()
    except sqlite3.Error:
        return None
    return (str(found[0]), str(found[1])) if found is not None else None
