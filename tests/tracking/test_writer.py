"""The queue that never waits and never loses: order, outages, refusals, a store that hangs."""

import json
import threading
import time

import pytest

from lit_pretrain.tracking.writer import GONE, Writer, gather_journals, merge_metrics, read_journal


class Store:
    """A store that can be away, and can refuse."""

    def __init__(self):
        self.received, self.away, self.hang, self.then_hang = [], False, None, None
        self.no_files, self.bad, self.gone, self.asked = False, set(), False, 0

    def send(self, operation):
        self.asked += 1
        hang, self.hang = self.hang, self.then_hang
        if hang is not None:
            hang.wait(20)
        if self.away:
            raise ConnectionError("nobody there\nsecond line")
        if operation["kind"] == "artifact" and self.no_files:
            raise PermissionError(13, "no bucket")
        if operation.get("refuse") or self.bad & set(steps([operation])) or self.gone:
            error = ValueError("too long")
            error.error_code = GONE if self.gone else "INVALID_PARAMETER_VALUE"
            raise error
        self.received.append(operation)


def metric(step):
    return {"kind": "metrics", "metrics": [["loss", 1.0, 0, step]]}


def steps(operations):
    return [row[3] for operation in operations for row in operation.get("metrics", [])]


def make(tmp_path, **settings):
    store, warnings = Store(), []
    writer = Writer(store.send, tmp_path / "unsent.jsonl", warnings.append, **({"interval": 0.01} | settings))
    return store, warnings, writer


def test_all_arrives_in_order_and_neighbours_are_merged(tmp_path):
    store, warnings, writer = make(tmp_path, interval=5.0)
    for step in range(2500):
        writer.put(metric(step))
    writer.put({"kind": "status", "status": "FINISHED"})
    assert writer.close()
    assert [len(operation.get("metrics", [])) for operation in store.received] == [1000, 1000, 500, 0]
    assert steps(store.received) == list(range(2500))
    assert not warnings


def test_merging_keeps_the_order_of_kinds_and_leaves_its_input_alone():
    operations = [metric(1), metric(2), {"kind": "tags", "tags": {"a": "b"}}, metric(3)]
    merged = merge_metrics(operations)
    assert [operation["kind"] for operation in merged] == ["metrics", "tags", "metrics"]
    assert steps(merged) == [1, 2, 3]
    assert len(operations[0]["metrics"]) == 1


def test_outage_is_one_warning_and_everything_comes_later_in_order(tmp_path):
    store, warnings, writer = make(tmp_path, retry_after=0.05)
    writer.put(metric(0))
    assert writer.flush()
    store.away = True
    for step in range(1, 200):
        writer.put(metric(step))
        time.sleep(0.001)
    assert not writer.flush()
    assert steps(read_journal(tmp_path / "unsent.jsonl")) == list(range(1, 200))
    assert len(warnings) == 1 and "nobody there" in warnings[0] and "second line" not in warnings[0]
    store.away = False
    # With nothing new to be sent.
    deadline = time.monotonic() + 20
    while (tmp_path / "unsent.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert steps(store.received) == list(range(200))
    writer.put(metric(200))
    assert writer.close()
    assert steps(store.received) == list(range(201))
    assert len(warnings) == 2 and "answers again" in warnings[1]


def test_refused_operation_is_kept_and_does_not_stop_the_others(tmp_path):
    store, warnings, writer = make(tmp_path)
    for operation in (metric(1), {"kind": "params", "params": {"a": "b"}, "refuse": True}, metric(2)):
        writer.put(operation)
    assert writer.close()
    assert steps(store.received) == [1, 2]
    assert json.loads((tmp_path / "refused.jsonl").read_text())["params"] == {"a": "b"}
    assert len(warnings) == 1


def test_store_that_hangs_delays_the_end_by_no_more_than_asked(tmp_path):
    store, _, writer = make(tmp_path)
    store.hang = store.then_hang = threading.Event()
    writer.put(metric(1))
    time.sleep(0.1)
    writer.put(metric(2))
    started = time.monotonic()
    assert not writer.close(timeout=0.3)
    assert time.monotonic() - started < 5
    assert steps(read_journal(tmp_path / "unsent.jsonl")) == [1, 2]
    store.hang.set()


def test_journal_of_an_earlier_process_is_sent_first(tmp_path):
    line = json.dumps(metric(1)) + "\n"
    (tmp_path / "unsent.jsonl").write_text(line + '{"kind": "metr')  # cut short by a crash
    store, _, writer = make(tmp_path)
    writer.put(metric(2))
    assert writer.close()
    assert steps(store.received) == [1, 2]
    assert not (tmp_path / "unsent.jsonl").exists()


@pytest.mark.parametrize("away", [False, True])
def test_a_thread_that_was_left_behind_takes_nothing_away(tmp_path, away):
    """It comes back, to a store that answers again or not, after others have journaled and sent."""
    store, _, writer = make(tmp_path)
    (tmp_path / "unsent.jsonl").write_text(json.dumps(metric(0)) + "\n")
    hang = store.hang = threading.Event()
    writer.put(metric(1))
    while store.asked < 1:
        time.sleep(0.005)
    writer.put(metric(2))
    assert not writer.flush(timeout=0.05)
    store.away = away
    writer.put(metric(3))
    hang.set()
    time.sleep(0.1)
    store.away = False
    assert writer.close()
    assert set(steps(store.received)) == {0, 1, 2, 3} and not (tmp_path / "unsent.jsonl").exists()


def test_files_fail_by_themselves(tmp_path):
    store, warnings, writer = make(tmp_path)
    store.no_files = True
    artifact = {"kind": "artifact", "file": "a", "folder": None}
    for operation in (artifact, metric(1), artifact | {"file": "b"}, {"kind": "status", "status": "FINISHED"}):
        writer.put(operation)
    assert not writer.flush()
    writer.put(metric(2))
    assert not writer.close()
    assert [one["kind"] for one in store.received] == ["metrics", "status", "metrics"]
    assert [one["file"] for one in read_journal(tmp_path / "unsent.jsonl")] == ["a", "b"]
    assert len(warnings) == 1 and "The store of artifacts cannot be written" in warnings[0]
    # One try at the first flush and one at the end, however many files there are.
    assert store.asked - len(store.received) == 2
    store.no_files = False
    assert writer.send_journal() and [one.get("file") for one in store.received[3:]] == ["a", "b"]


def test_a_bad_entry_is_refused_alone(tmp_path):
    store, _, writer = make(tmp_path, interval=5.0)
    store.bad = {7, 400}
    for step in range(1000):
        writer.put(metric(step))
    assert writer.close()
    assert steps(store.received) == [step for step in range(1000) if step not in store.bad]
    assert steps(read_journal(tmp_path / "refused.jsonl")) == [7, 400] and store.asked < 60
    # Of a run that is gone all are bad, and asking for each is no use.
    store.gone, store.asked = True, 0
    for step in range(1000, 2000):
        writer.put(metric(step))
    assert writer.close() and store.asked == 1
    # Both are sent when they can be.
    store.bad, store.gone = set(), False
    assert gather_journals(tmp_path) == 3 and writer.send_journal()
    assert set(steps(store.received)) == set(range(2000)) and not (tmp_path / "refused.jsonl").exists()
