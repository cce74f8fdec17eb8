"""Sends what is logged to the tracking store from a thread of its own, and loses nothing when the store is away.

MLflow's own asynchronous queue drops a batch that fails and can block for minutes on a server that is gone. Training
must feel neither: here `put` only appends to a list; a thread sends what has gathered every few seconds; what cannot
be sent goes to a journal in the run's directory and is sent when the server answers again, or when the run is resumed.
"""

import atexit
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One operation: {"kind": "metrics" | "params" | "tags" | "artifact" | "status", ...}, primitives only.
Operation = dict[str, Any]
METRICS_PER_REQUEST = 1000


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
        self._first_retry_after = self._retry_after = retry_after
        self._retry_at = 0.0
        self._away = False
        self._refused = False
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
            self._flushing = True
            # A flush is the last chance for what could not be sent earlier: try the store once more.
            self._retry_at = 0.0
            self._changed.notify_all()
            while self._thread is not None and (self._pending or self._sending or self._flushing):
                if not self._changed.wait(max(deadline - time.monotonic(), 0)) and time.monotonic() >= deadline:
                    break
            if self._pending or self._sending:
                # The thread hangs in a request: leave it behind. Should the request get through after all it is sent
                # twice, which does no harm, since metrics are keyed by step and time.
                self._keep(self._sending + self._pending)
                self._pending, self._sending, self._thread = [], [], None
            self._flushing = False
        return not self._journal.exists()

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and end the thread; says whether all reached the store. A later `put` starts another one."""
        sent = self.flush(timeout)
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout=1.0)
        atexit.unregister(self._close_at_exit)
        return sent

    # -- the thread

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._flushing or self._thread is not me, timeout=self._interval)
                if self._thread is not me:
                    return
                self._sending, self._pending = self._pending, []
                operations = list(self._sending)
            self._deliver(operations)
            with self._changed:
                if self._thread is not me:
                    return
                self._sending = []
                if not self._pending:
                    self._flushing = False
                self._changed.notify_all()

    def _deliver(self, operations: list[Operation]) -> None:
        operations = merge_metrics(operations)
        has_journal = self._journal.exists()
        if not operations and not (has_journal and self._flushing):
            return
        if time.monotonic() < self._retry_at:
            self._keep(operations)
            return
        # Order matters (a status comes last), so what was journaled goes first.
        backlog = merge_metrics(read_journal(self._journal)) + operations if has_journal else operations
        for index, operation in enumerate(backlog):
            try:
                self._send(operation)
            except Exception as error:
                if is_refusal(error):
                    # The store answers but will never take this one: trying again is no use, dropping it is a loss.
                    self._refuse(operation, error)
                    continue
                self._go_away(error)
                write_journal(self._journal, backlog[index:])
                return
        if has_journal:
            self._journal.unlink(missing_ok=True)
        if self._away:
            self._away, self._retry_after = False, self._first_retry_after
            self._warn("The tracking server answers again; everything kept meanwhile was sent.")

    def _go_away(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(self._retry_after * 2, 10 * self._first_retry_after)
        if not self._away:
            self._away = True
            self._warn(
                f"The tracking server does not answer ({first_line(error)}); the training goes on and what it logs is "
                f"kept in {self._journal} until the server is back or the run is resumed."
            )

    def _refuse(self, operation: Operation, error: Exception) -> None:
        with (self._journal.parent / "refused.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(operation) + "\n")
        if not self._refused:
            self._refused = True
            self._warn(
                f"The tracking store refused {operation['kind']} ({first_line(error)}); what it refuses is kept in "
                f"{self._journal.parent / 'refused.jsonl'}."
            )

    def _keep(self, operations: list[Operation]) -> None:
        """Append to the journal."""
        if operations:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(operation) + "\n" for operation in operations)

    def _close_at_exit(self) -> None:
        # A forked loader worker inherits this object, but not its thread, and must not send a thing.
        if os.getpid() == self._process_id:
            self.close(timeout=15.0)


def merge_metrics(operations: list[Operation]) -> list[Operation]:
    """Join neighbouring metric operations into requests of at most a thousand; the order is kept."""
    merged: list[Operation] = []
    for operation in operations:
        last = merged[-1] if merged else None
        if operation["kind"] == "metrics" == (last or {}).get("kind"):
            if len(last["metrics"]) + len(operation["metrics"]) <= METRICS_PER_REQUEST:
                last["metrics"].extend(operation["metrics"])
                continue
        merged.append({**operation, "metrics": list(operation["metrics"])} if "metrics" in operation else operation)
    return merged


def read_journal(path: Path) -> list[Operation]:
    """Read a journal; a last line cut short by a crash is left out."""
    operations = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            operations.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return operations


def write_journal(path: Path, operations: list[Operation]) -> None:
    """Replace a journal."""
    from lit_pretrain.tracking.paths import write_atomically

    write_atomically(path, "".join(json.dumps(operation) + "\n" for operation in operations))


def is_refusal(error: Exception) -> bool:
    """Say whether the store answered and will never take this, as opposed to being away, busy or broken."""
    code = getattr(error, "error_code", "")
    return code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def first_line(error: BaseException, limit: int = 200) -> str:
    """First line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
