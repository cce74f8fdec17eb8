"""Does a sweep's trials, in any number of processes at once, and takes up those whose process was killed.

A trial's process holds a lock while it trains, and the sweep's process another one for each of its trials; the system
takes both back when a process ends, however it ends. So a trial that is neither ended nor locked is one that was
killed: whoever finds it takes it up, and its training goes on from its last checkpoint.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from lit_pretrain.errors import UserError
from lit_pretrain.studies import processes
from lit_pretrain.studies.cells import Cell, Outcome
from lit_pretrain.studies.record import StudyRecord
from lit_pretrain.studies.scheduler import Runner, Say, duration, terminate_as_interrupt
from lit_pretrain.studies.sweep import Sweep
from lit_pretrain.studies.sweep_settings import make_sampler
from lit_pretrain.studies.trials import open_study, pruned_at, store_address

# Of the study in Optuna's store: whether the sampler has no more values to try.
EXHAUSTED_KEY = "exhausted"
RESTARTS_KEY = "restarts"
# Between the seeds of two sweeps, which have as many seeds as trials.
SEED_STRIDE = 1_000_003
# Of a trial's MLflow run.
STATE_TAG = "study.trial_state"


class SweepRunner(Runner):
    """Trains a sweep's trials.

    Args:
        sweep: Which.
        record: Its run and directory.
        jobs: How many trials at a time.
        say: Told a line for each trial.
    """

    def __init__(self, sweep: Sweep, record: StudyRecord, jobs: int, say: Say) -> None:
        super().__init__(sweep.settings, record, processes.Machine(jobs), say)
        self.sweep = sweep
        self.directory = self.store.directory.parent
        self.store.directory.mkdir(parents=True, exist_ok=True)
        # One process at a time proposes a trial, or takes one up.
        self._asking = FileLock(self.store.directory / ".asking.lock", thread_local=False)
        with self._asking:
            self.study = open_study(self.directory, sweep.settings, sweep.identity)
        self._begun = False
        self._held: dict[int, FileLock] = {}
        self._deadline = math.inf

    def _callbacks(self, cell: Cell) -> list[dict[str, Any]]:
        arguments = {
            "storage": store_address(self.directory),
            "study": self.sweep.settings.name,
            "trial": self._trial(cell.labels["trial"])._trial_id,
            "metric": self.sweep.settings.metric,
            "pruner": json.dumps(self.sweep.settings.pruner),
        }
        return [{"class_path": "lit_pretrain.studies.trial_report.TrialReport", "init_args": arguments}]

    def _trial(self, number: int) -> Any:
        """A trial as Optuna's store has it now."""
        return self.study.get_trials(deepcopy=False)[number]

    def run_trials(self) -> None:
        """Do trials until there are as many as are asked for, or time is up; returns when none of ours is going on.

        Raises:
            KeyboardInterrupt: If a person or a system stopped it; the trials have been stopped in order.
        """
        self._deadline = time.monotonic() + (self.sweep.settings.seconds() or math.inf)
        self.total = self.sweep.settings.trials or 0
        going: dict[Any, tuple[Cell, float]] = {}
        with terminate_as_interrupt():
            try:
                while True:
                    while len(going) < self.engine.most and (cell := self._next()) is not None:
                        going[self._begin(cell)] = cell, time.monotonic()
                    if not going:
                        return
                    for process in self.engine.wait(list(going)):
                        cell, started = going.pop(process)
                        if self._goes_on(cell, process):
                            going[self._begin(cell)] = cell, started
                        else:
                            self._finish(cell, process, time.monotonic() - started)
            except KeyboardInterrupt:
                self._stop(going)
                self.say("The same command goes on with the sweep.")
                raise
            finally:
                for lock in self._held.values():
                    lock.release()

    def others_at_work(self) -> int:
        """How many trials other processes train now."""
        count = 0
        for trial in self._running():
            lock = self._hold(self.sweep.cell(trial.number, trial.params))
            if lock is None:
                count += 1
            else:
                lock.release()
        return count

    def _running(self) -> list[Any]:
        """Trials that Optuna's store takes for going on, and that are not ours."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in trials if trial.number not in self._held and self.sweep.is_whole(trial)]

    def _hold(self, cell: Cell) -> FileLock | None:
        """The lock of a trial; null if another process has it."""
        lock = FileLock(self.store.directory / f"{cell.hash}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _next(self) -> Cell | None:
        """The next trial to do, ours from now on: one whose process was killed, else a new one; null for none."""
        if time.monotonic() > self._deadline:
            return None
        with self._asking:
            self._reopen()
            return self._take_up() or self._propose()

    def _reopen(self) -> None:
        """Before the first trial: another start of the sweep, with other settings, may have put its own study here."""
        if not self._begun:
            self.study = open_study(self.directory, self.sweep.settings, self.sweep.identity)
            self._begun = bool(self.study.get_trials(deepcopy=False))

    def _take_up(self) -> Cell | None:
        for trial in self._running():
            cell = self.sweep.cell(trial.number, trial.params)
            lock = self._hold(cell)
            if lock is None:
                continue
            if self._trial(trial.number).state.is_finished():
                # Its process has ended it since.
                lock.release()
                continue
            self._held[trial.number] = lock
            outcome = self.store.outcome(cell)
            if outcome is None:
                self.say(f"{cell.name}: its process was ended; it goes on.")
                return cell
            # Its training came to its end, and its process did not come to telling.
            self._tell(cell, outcome)
        return None

    def _propose(self) -> Cell | None:
        trials = self.study.get_trials(deepcopy=False)
        limit = self.sweep.settings.trials or math.inf
        if sum(map(self.sweep.is_whole, trials)) >= limit or self.study.user_attrs.get(EXHAUSTED_KEY):
            return None
        seed = (self.sweep.settings.seed * SEED_STRIDE + len(trials)) % 2**32
        self.study.sampler = make_sampler(self.sweep.settings.sampler, seed)
        trial = self.study.ask(self.sweep.distributions)
        cell = self.sweep.cell(trial.number, trial.params)
        lock = self._hold(cell)
        if lock is not None:
            self._held[trial.number] = lock
        return cell

    def _begin(self, cell: Cell) -> Any:
        # Whoever looks after dead runs sees a living process behind the sweep's, though another one may have begun it.
        with unless_away():
            self.record.claim()
        return self._start(cell)

    def _goes_on(self, cell: Cell, process: Any) -> bool:
        """Whether a trial's process was killed, of which a second one is told as a failure."""
        number, killed = cell.labels["trial"], (process.exitcode or 0) < 0
        if not killed or self.store.outcome(cell) is not None or self._trial(number).user_attrs.get(RESTARTS_KEY):
            return False
        self._set(number, RESTARTS_KEY, 1)
        self.say(f"{cell.name}: its process ended with {processes.describe_exit(process.exitcode)}; it goes on.")
        return True

    def _set(self, number: int, key: str, value: Any) -> None:
        self.study._storage.set_trial_user_attr(self._trial(number)._trial_id, key, value)

    def _finish(self, cell: Cell, process: Any, seconds: float) -> None:
        """Tell Optuna and the person how a trial ended."""
        outcome = self._outcome(cell, process)
        self._tell(cell, outcome)
        trial = self._trial(cell.labels["trial"])
        self.done = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        pruned = pruned_at(trial)
        words = f"{outcome.status}: {outcome.reason}"
        if outcome.status == "finished":
            value = outcome.metrics.get(self.settings.metric, math.nan)
            early = "" if pruned is None else f"pruned at step {pruned:,}, "
            words = f"{early}{self.settings.metric} {value:.4g} in {duration(seconds)}"
        self.say(f"{self._count()}{cell.name}: {words}")

    def _tell(self, cell: Cell, outcome: Outcome) -> None:
        """Write down in Optuna's store what came of a trial."""
        from optuna.trial import TrialState

        number = cell.labels["trial"]
        state, value = TrialState.FAIL, None
        if outcome.status == "finished":
            complete = pruned_at(self._trial(number)) is None
            state = TrialState.COMPLETE if complete else TrialState.PRUNED
            value = outcome.metrics[self.settings.metric] if complete else None
        facts = {"run_id": outcome.run_id, "seconds": outcome.seconds, "reason": outcome.reason}
        for key, fact in facts.items():
            if fact:
                self._set(number, key, fact)
        try:
            self.study.tell(number, value, state=state)
        except RuntimeError:
            # How samplers of finitely many values say, outside of Optuna's own loop, that they have no more.
            if not self._trial(number).state.is_finished():
                raise
            self.study.set_user_attr(EXHAUSTED_KEY, True)
        if outcome.run_id:
            with unless_away():
                self.record.client.set_tag(outcome.run_id, STATE_TAG, state.name.lower())
        self._held.pop(number).release()


@contextlib.contextmanager
def unless_away() -> Iterator[None]:
    """Do without what only makes MLflow's page better, where its server is away for a while."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException, UserError):
        yield
