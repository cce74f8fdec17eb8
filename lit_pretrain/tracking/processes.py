"""Which process writes a run, and whether it still lives.

A process killed outright cannot say so: its run would be shown as running for ever. A process id alone is not enough to
tell, since ids are used again; together with the time at which the process started it is.
"""

import os
import socket
import subprocess
from pathlib import Path


def host_name() -> str:
    """Name of this machine."""
    return socket.gethostname()


def process_identity(process_id: int | None = None) -> str:
    """Return "pid@start", which no other process of this machine ever has again.

    Args:
        process_id: The process; null for this one.

    Returns:
        The identity, or an empty string if there is no such process.
    """
    process_id = os.getpid() if process_id is None else process_id
    started = _start_time(process_id)
    return f"{process_id}@{started}" if started else ""


def is_alive(identity: str) -> bool:
    """Say whether the process of this machine with this identity still runs."""
    try:
        process_id = int(identity.partition("@")[0])
    except ValueError:
        return False
    return process_identity(process_id) == identity


def _start_time(process_id: int) -> str:
    """Start of a process, in whatever unit the system has; empty if it does not exist or is a zombie."""
    statistics = Path(f"/proc/{process_id}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the command in brackets and may itself hold spaces and brackets.
            fields = statistics.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        state, start = fields[0], fields[19]
        if state in ("Z", "X"):
            return ""
        # Ticks count from the boot of the machine, so name the boot too.
        boot = Path("/proc/sys/kernel/random/boot_id")
        return f"{start}.{boot.read_text().strip()[:8]}" if boot.exists() else start
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(process_id)], capture_output=True, text=True, check=False)
    return "-".join(answer.stdout.split())
