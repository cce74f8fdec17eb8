"""Send what runs have logged and the tracking store has not taken: it was away, or it refused something."""

import argparse
import sys

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import RunRecord, find_run, list_runs
from lit_pretrain.tracking.paths import resolve_runs_directory, shown_path
from lit_pretrain.tracking.writer import REFUSED_NAME, UNSENT_NAME, Writer, gather_journals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("run_names", nargs="*", metavar="RUN", help="runs by name or id (default: all that have any)")
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")
    parser.add_argument("--restore", action="store_true", help="restore runs that were deleted in the store first")


def run(arguments: argparse.Namespace) -> int:
    """Send, and say of each run how much.

    Raises:
        UserError: If anything is left.
    """
    directory = resolve_runs_directory(arguments.runs)
    records = [find_run(name, directory) for name in arguments.run_names] or list_runs(directory)
    records = [
        record for record in records if any((record.directory / name).exists() for name in (UNSENT_NAME, REFUSED_NAME))
    ]
    if not records:
        print("Everything that the runs have logged is where it belongs.")
    problems = [problem for record in records if (problem := send_rest(record, arguments.restore))]
    if problems:
        raise UserError("; ".join(problems) + ".")
    return 0


def send_rest(record: RunRecord, restore: bool) -> str | None:
    """Send what is left of a run.

    Returns:
        Why not all was sent, in half a sentence, or null.
    """
    from mlflow.exceptions import MlflowException

    from lit_pretrain.tracking.processes import Presence
    from lit_pretrain.tracking.store import address_of, open_store, send

    presence = Presence(record.directory)
    try:
        if presence.taken:
            return f"the run {record.run_name} is still going on, and sends what it has by itself"
        client = open_store(address_of(record), record.directory.parent.parent)
        try:
            deleted = client.get_run(record.run_id).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            return f"the run {record.run_name} is not in its store ({' '.join(str(error).split())[:200]})"
        if deleted and not restore:
            return f"the run {record.run_name} is deleted in its store: restore it there, or add --restore"
        if deleted:
            client.restore_run(record.run_id)
        count = gather_journals(record.directory)

        def say(sentence: str) -> None:
            print(sentence, file=sys.stderr)

        writer = Writer(
            lambda operation: send(client, record.run_id, operation, record.directory),
            record.directory / UNSENT_NAME,
            say,
        )
        if not writer.send_journal() or (record.directory / REFUSED_NAME).exists():
            return f"not all of the run {record.run_name} was taken: what is left is in {shown_path(record.directory)}"
        print(f"{record.run_name}: sent {count} entries.")
        return None
    finally:
        presence.end()
