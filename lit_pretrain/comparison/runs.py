"""Runs as the store has them: settings, figures, what measured their checkpoints, and what started from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.writer import first_line, is_gone

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Stages of runs that measure or use a checkpoint and train nothing.
MEASURING = ("validate", "test", "predict", "evaluate")
PAGE = 200


@dataclass(frozen=True)
class Run:
    """A run of the store.

    Attributes:
        run_id: MLflow's.
        name: Its name.
        experiment: Name of its experiment.
        status: FINISHED, KILLED, FAILED or RUNNING.
        started: When it began, in seconds since 1970.
        ended: When it ended; null while it goes on.
        deleted: Whether it was deleted in the store, which still has it.
        parameters: The resolved config, flat, and the facts of model and data.
        tags: Its tags.
        metrics: The last value of each metric.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started: float
    ended: float | None
    deleted: bool
    parameters: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def stage(self) -> str:
        """What it did: fit, validate, test, predict or evaluate; empty if it has not come so far."""
        return self.tags.get("stage", "")

    @property
    def source_id(self) -> str | None:
        """Id of the run whose checkpoint it measured; null for one that trains."""
        # Fresh weights have the shape of a run, and nothing of what it has learned.
        measuring = self.stage in MEASURING and self.tags.get("fresh_weights") != "true"
        return self.tags.get("source.run_id") if measuring else None

    @property
    def seed(self) -> str:
        """The seed of its training."""
        return self.parameters.get("seed_everything", "")

    def fact(self, name: str) -> str | None:
        """A fact of the data; runs of `evaluate` note them without a prefix."""
        return self.parameters.get(f"data_facts.{name}", self.parameters.get(name))


class RunStore:
    """Reads runs, each once.

    Args:
        client: MLflow's, of one store.
    """

    def __init__(self, client: "MlflowClient") -> None:
        self.client = client
        self._runs: dict[str, Run | None] = {}
        self._experiments: dict[str, str] | None = None
        self._histories: dict[tuple[str, str], list[tuple[int, float]]] = {}

    @property
    def experiments(self) -> dict[str, str]:
        """Names of all experiments by their ids."""
        if self._experiments is None:
            found: dict[str, str] = {}
            token = None
            while True:
                page = self.client.search_experiments(page_token=token)
                found |= {experiment.experiment_id: experiment.name for experiment in page}
                token = page.token
                if not token:
                    break
            self._experiments = found
        return self._experiments

    def _run_of(self, run: Any) -> Run:
        info, data = run.info, run.data
        found = self._runs[info.run_id] = Run(
            info.run_id,
            info.run_name,
            self.experiments.get(info.experiment_id, info.experiment_id),
            info.status,
            info.start_time / 1000,
            info.end_time / 1000 if info.end_time else None,
            info.lifecycle_stage == "deleted",
            dict(data.params),
            dict(data.tags),
            dict(data.metrics),
        )
        return found

    def run(self, run_id: str) -> Run | None:
        """A run by its whole id; null if the store does not have it."""
        from mlflow.exceptions import MlflowException

        if run_id not in self._runs:
            try:
                self._run_of(self.client.get_run(run_id))
            except MlflowException as error:
                if not is_gone(error):
                    raise
                self._runs[run_id] = None
        return self._runs[run_id]

    def search(self, condition: str = "", experiments: Sequence[str] | None = None) -> Iterator[Run]:
        """Runs that meet a condition, the latest first.

        Args:
            condition: In MLflow's filter syntax; empty for all.
            experiments: Ids; null for all.
        """
        ids = list(self.experiments) if experiments is None else list(experiments)
        token = None
        while ids:
            page = self.client.search_runs(
                ids, condition, max_results=PAGE, order_by=["attributes.start_time DESC"], page_token=token
            )
            for run in page:
                yield self._run_of(run)
            token = page.token
            if not token:
                return

    def filtered(self, condition: str, experiments: Sequence[str] | None = None) -> Iterator[Run]:
        """As `search`, with a condition that a person wrote.

        Raises:
            UserError: If MLflow does not understand it.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield from self.search(condition, experiments)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(
                f'--where "{condition}" is not understood ({first_line(error, 150).rstrip(".")}): write it as in '
                "MLflow's search, such as params.`model.optimizer.learning_rate` = '0.0003' and "
                'metrics."best/validation/accuracy" > 0.8.'
            ) from error

    def measurements_of(self, run_id: str) -> list[Run]:
        """Runs that measured a run's checkpoints, the latest first."""
        return [run for run in self.search(f"tags.`source.run_id` = '{run_id}'") if run.source_id == run_id]

    def started_from(self, run_id: str) -> list[Run]:
        """Runs that trained on from a run's weights, the latest first."""
        found = {}
        for name in ("init_from_run", "text_init_from_run", "vision_init_from_run"):
            for run in self.search(f"params.`model_facts.{name}` = '{run_id}'"):
                if run.stage not in MEASURING:
                    found[run.run_id] = run
        return sorted(found.values(), key=lambda run: run.started, reverse=True)

    def history(self, run: Run, metric: str) -> list[tuple[int, float]]:
        """All values of a metric by rising steps, of each step the last one logged; empty if it has none."""
        key = run.run_id, metric
        if key not in self._histories:
            values = self.client.get_metric_history(*key) if metric in run.metrics else []
            values = sorted(values, key=lambda value: (value.step, value.timestamp))
            self._histories[key] = list({value.step: (value.step, value.value) for value in values}.values())
        return self._histories[key]
