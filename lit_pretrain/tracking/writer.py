"""Sends what is logged to the tracking store from a thread of its own, and loses nothing when the store is away.

MLflow's own asynchronous queue drops a batch that fails and can block for minutes on a server that is gone. Training
must feel neither: here `put` only appends to a list; a thread sends what has gathered every few seconds; what cannot
be sent goes to a journal in the run's directory and is sent when the server answers again, or when the run is resumed.
Files go elsewhere than figures, to a bucket say, and fail by themselves; and so does each entry that is refused.
"""

import atexit
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.errors import without_credentials

# One operation: {"kind": "metrics" | "params" | "tags" | "artifact" | "status", ...}, primitives only.
Operation = dict[str, Any]
METRICS_PER_REQUEST = 1000
UNSENT_NAME, REFUSED_NAME = "unsent.jsonl", "refused.jsonl"
# Figures first, since files may wait for a store of their own; how the run ended last.
ORDER = {"artifact": 1, "status": 2}
# What is sent whole each time.
STATES = ("models", "description")
# What a store answers of a run that is not there, or is deleted.
GONE = "RESOURCE_DOES_NOT_EXIST"


class Writer:
    """A queue of operations, a thread that sends them in order, and a journal of those it could not send.

    Args:
        send: Sends one operation; it may raise anything.
        journal: File that keeps, one JSON object a line, what could not be sent.
        warn: Told once when the store goes away and once when it is back.
        interval: Seconds between two requests; metrics that gather meanwhile are sent together.
        retry_after: Seconds until an unreachable store is tried again; doubles up to ten times this.
    """

    def __init__(
        self,
        send: Callable[[Operation], None],
        journal: Path,
        warn: Callable[[str], None],
        interval: float = 5.0,
        retry_after: float = 30.0,
    ) -> None:
        self._send = send
        self._journal = journal
        self._warn = warn
        self._interval = interval
        self._first_retry_after = retry_after
        # When a store that is away is tried again, and how long it is left alone then: of figures, and of files.
        self._retry_at = {"figures": 0.0, "files": 0.0}
        self._retry_after = dict.fromkeys(self._retry_at, retry_after)
        self._said: set[str] = set()
        self._pending: list[Operation] = []
        self._sending: list[Operation] = []
        self._changed = threading.Condition()
        self._flushing = False
        self._process_id = os.getpid()
        self._thread: threading.Thread | None = None

    def put(self, operation: Operation) -> None:
        """Queue one operation; never waits for the store."""
        with self._changed:
            self._pending.append(operation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tracking-writer", daemon=True)
                self._thread.start()
                atexit.register(self._close_at_exit)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything queued is sent or journaled.

        Args:
            timeout: Seconds to wait; what the thread has not dealt with by then is journaled from here.

        Returns:
            Whether all of it reached the store.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            # A flush is the last chance for what could not be sent earlier: try the store once more.
            self._retry_at["figures"] = 0.0
            self._flushing = self._thread is not None
            self._changed.notify_all()
            while self._flushing and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            if self._flushing:
                # The thread hangs in a request: leave it behind. Should the request get through after all it is sent
                # twice, which does no harm, since metrics are keyed by step and time.
                if self._sending and self._sending[0]["kind"] == "artifact":
                    self._wait("files")
                unsent, self._sending, self._thread, self._flushing = self._sending + self._pending, [], None, False
                self._pending = self._keep(unsent)
            return not self._pending and not self._journal.exists()

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and end the thread; says whether all reached the store. A later `put` starts another one."""
        with self._changed:
            self._retry_at["files"] = 0.0
        sent = self.flush(timeout)
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout=1.0)
        atexit.unregister(self._close_at_exit)
        return sent

    def send_journal(self) -> bool:
        """Send what the journal holds, now and from here; says whether all of it reached the store."""
        self._retry_at = dict.fromkeys(self._retry_at, 0.0)
        self._deliver([], lambda: False)
        return not self._journal.exists()

    # -- the thread

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._flushing or self._thread is not me, timeout=self._interval)
                if self._thread is not me:
                    return
                self._sending, self._pending = in_order(self._pending), []
                operations, flushing = list(self._sending), self._flushing
            stuck = []
            # A store that was away is asked again, whether anything new is logged meanwhile or not.
            if operations or flushing or ("figures" in self._said and time.monotonic() >= self._retry_at["figures"]):
                stuck = self._deliver(operations, lambda: self._thread is not me)
            with self._changed:
                if self._thread is not me:
                    return
                self._sending, self._pending = [], stuck + self._pending
                if stuck or not self._pending:
                    self._flushing = False
                self._changed.notify_all()

    def _deliver(self, operations: list[Operation], abandoned: Callable[[], bool]) -> list[Operation]:
        """Send the journal and some operations, in order, and journal what cannot be sent.

        Args:
            operations: What is not in the journal.
            abandoned: Whether the thread was left behind: then whoever did so has kept what it had not sent, and the
                journal is no longer its own.

        Returns:
            Those operations that could be neither sent nor journaled.
        """
        if time.monotonic() < self._retry_at["figures"]:
            with self._changed:
                return [] if abandoned() else self._keep(operations)
        try:
            earlier = in_order(read_journal(self._journal)) if self._journal.exists() else []
        except OSError as error:
            self._say_disk(error)
            return operations
        kept: list[Operation] = []
        for operation in in_order([*earlier, *operations], merge=False):
            store = "files" if operation["kind"] == "artifact" else "figures"
            failure = self._attempt(store, operation)
            with self._changed:
                if abandoned():
                    return []
                self._sending = [entry for entry in self._sending if entry is not operation]
                if failure is None:
                    self._come_back(store)
                    continue
                kept.append(operation)
                if not isinstance(failure, Waiting):
                    self._go_away(store, failure)
        with self._changed:
            if abandoned() or kept == earlier:
                return []
            try:
                if kept:
                    write_journal(self._journal, kept)
                else:
                    self._journal.unlink(missing_ok=True)
                self._said.discard("disk")
            except OSError as error:
                self._say_disk(error)
                # The journal is as it was; what is not in it stays in memory.
                new = {id(operation) for operation in operations}
                return [operation for operation in kept if id(operation) in new]
        return []

    def _attempt(self, store: str, operation: Operation) -> Exception | None:
        """Send an operation, unless its store is left alone for now; returns what was in the way."""
        if time.monotonic() < self._retry_at[store]:
            return Waiting()
        try:
            self._send_or_refuse(operation)
        except Exception as error:
            return error
        return None

    def _send_or_refuse(self, operation: Operation) -> None:
        """Send an operation; if it is refused, its parts, and refuse those that are refused alone."""
        try:
            self._send(operation)
        except Exception as error:
            if not is_refusal(error):
                raise
            parts = [] if is_gone(error) else halves(operation)
            for part in parts:
                self._send_or_refuse(part)
            if not parts:
                # The store answers but will never take this one: trying again is no use, dropping it is a loss.
                self._refuse(operation, error)

    def _wait(self, store: str) -> None:
        self._retry_at[store] = time.monotonic() + self._retry_after[store]
        self._retry_after[store] = min(self._retry_after[store] * 2, 10 * self._first_retry_after)

    def _go_away(self, store: str, error: Exception) -> None:
        self._wait(store)
        if store in self._said:
            return
        self._said.add(store)
        if store == "figures":
            self._warn(
                f"The tracking store does not answer ({first_line(error)}); the training goes on and what it logs is "
                f"kept in {self._journal} until the store is back or the run is resumed."
            )
        else:
            self._warn(
                f"The store of artifacts cannot be written ({first_line(error)}); metrics and parameters are not "
                f"touched by it. The files stay in {self._journal.parent}; python -m lit_pretrain sync sends them."
            )

    def _come_back(self, store: str) -> None:
        self._retry_after[store] = self._first_retry_after
        if store in self._said:
            self._said.discard(store)
            sentence = "The tracking store answers" if store == "figures" else "The store of artifacts can be written"
            self._warn(f"{sentence} again; what was kept meanwhile is sent.")

    def _refuse(self, operation: Operation, error: Exception) -> None:
        path = self._journal.parent / REFUSED_NAME
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(operation) + "\n")
        except OSError as no_room:
            self._say_disk(no_room)
            raise Waiting from no_room
        if "refused" not in self._said:
            self._said.add("refused")
            self._warn(
                f"The tracking store refused {operation['kind']} ({first_line(error)}); what it refuses is kept in "
                f"{path}; python -m lit_pretrain sync tries it again."
            )

    def _keep(self, operations: list[Operation]) -> list[Operation]:
        """Append to the journal; returns what could not be written."""
        if not operations:
            return []
        try:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(operation) + "\n" for operation in operations)
        except OSError as error:
            self._say_disk(error)
            return operations
        return []

    def _say_disk(self, error: OSError) -> None:
        if "disk" not in self._said:
            self._said.add("disk")
            self._warn(
                f"{self._journal} cannot be written ({error.strerror or error}): what the tracking store has not taken "
                "is kept in memory only; free some room, and it is sent as soon as the store takes it."
            )

    def _close_at_exit(self) -> None:
        # A forked loader worker inherits this object, but not its thread, and must not send a thing.
        if os.getpid() == self._process_id:
            self.close(timeout=15.0)


class Waiting(Exception):
    """An operation is to be tried again later; its store is not in the way."""


def in_order(operations: list[Operation], merge: bool = True) -> list[Operation]:
    """Operations with figures first, then files, then how the run ended; each kind in its own order."""
    ordered = sorted(operations, key=lambda operation: ORDER.get(operation["kind"], 0))
    return merge_metrics(without_former_states(ordered)) if merge else ordered


def without_former_states(operations: list[Operation]) -> list[Operation]:
    """Leave out what says how something is, and is followed by a later such entry."""
    latest = {operation["kind"]: operation for operation in operations if operation["kind"] in STATES}
    return [one for one in operations if latest.get(one["kind"], one) is one]


def halves(operation: Operation) -> list[Operation]:
    """An operation of several entries as two of half as many; nothing if it has one."""
    if operation["kind"] not in ("metrics", "params", "tags"):
        return []
    name, entries = operation["kind"], operation[operation["kind"]]
    if len(entries) < 2:
        return []
    rows = list(entries.items()) if isinstance(entries, dict) else entries
    middle = len(rows) // 2
    return [{**operation, name: type(entries)(part)} for part in (rows[:middle], rows[middle:])]


def merge_metrics(operations: list[Operation]) -> list[Operation]:
    """Join neighbouring metric operations into requests of at most a thousand; the order is kept."""
    merged: list[Operation] = []
    for operation in operations:
        last = merged[-1] if merged else None
        if last is not None and operation["kind"] == "metrics" == last["kind"]:
            if len(last["metrics"]) + len(operation["metrics"]) <= METRICS_PER_REQUEST:
                last["metrics"].extend(operation["metrics"])
                continue
        merged.append({**operation, "metrics": list(operation["metrics"])} if "metrics" in operation else operation)
    return merged


def read_journal(path: Path) -> list[Operation]:
    """Read a journal; a last line cut short by a crash is left out."""
    operations = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            operations.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return operations


def write_journal(path: Path, operations: list[Operation]) -> None:
    """Replace a journal."""
    from lit_pretrain.tracking.paths import write_atomically

    write_atomically(path, "".join(json.dumps(operation) + "\n" for operation in operations))


def gather_journals(directory: Path, but_for: Sequence[str] = ()) -> int:
    """Put what was refused into the journal of what is to be sent, since it may be taken by now.

    Args:
        directory: The run's.
        but_for: Kinds of operations that have lost their meaning.

    Returns:
        How many operations are to be sent.
    """
    unsent, refused = directory / UNSENT_NAME, directory / REFUSED_NAME
    operations = [one for path in (refused, unsent) if path.exists() for one in read_journal(path)]
    operations = [operation for operation in operations if operation["kind"] not in but_for]
    if operations:
        write_journal(unsent, operations)
    else:
        unsent.unlink(missing_ok=True)
    refused.unlink(missing_ok=True)
    return len(operations)


def is_refusal(error: Exception) -> bool:
    """Say whether the store answered and will never take this, as opposed to being away, busy or broken."""
    code = getattr(error, "error_code", "")
    return code in ("INVALID_PARAMETER_VALUE", GONE, "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def is_gone(error: Exception) -> bool:
    """Say whether the store takes nothing of this run any more."""
    return getattr(error, "error_code", "") == GONE


def first_line(error: BaseException, limit: int = 200) -> str:
    """First line of an error's message, or its type if it has none; without passwords that stand in it."""
    lines = without_credentials(str(error)).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
