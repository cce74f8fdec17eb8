"""Which process writes a run, and whether it still lives.

A process killed outright cannot say so: its run would be shown as running for ever. A process id alone is not enough to
tell, since ids are used again, and containers, and machines of one name, each have their own. So a process is known by
its id with its start, the boot of its machine and its namespace of ids; from elsewhere it is seen by the lock that it
holds on a file of its run's directory, and by the time that it gives that file again and again.
"""

import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import shown_path

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where a run is seen by the file's time alone
    fcntl = None

ALIVE_NAME = ".alive"
BEAT_SECONDS = 15.0
# Of another machine, whose locks this one may not see: the least time without a sign that is taken for an end.
SILENT_SECONDS = 600.0
# The longest that a lock outlives its process.
LINGER_SECONDS = 6.0

State = Literal["alive", "dead", "unknown"]


def host_name() -> str:
    """Name of this machine."""
    return socket.gethostname()


def process_identity(process_id: int | None = None) -> str:
    """Return "pid@start.boot.namespace", which no other process anywhere ever has again.

    Args:
        process_id: The process; null for this one.

    Returns:
        The identity, or an empty string if there is no such process.
    """
    process_id = os.getpid() if process_id is None else process_id
    started = _start_time(process_id)
    return ".".join([f"{process_id}@{started}", *_place()]) if started else ""


def is_alive(identity: str) -> bool:
    """Say whether the process with this identity, of this machine and namespace, still runs."""
    try:
        process_id = int(identity.partition("@")[0])
    except ValueError:
        return False
    # Identities of earlier versions have no namespace.
    current = process_identity(process_id)
    return bool(current) and (current == identity or current.startswith(f"{identity}."))


def state_of(identity: str, directory: Path | None = None, wait: float = 0.0) -> State:
    """Whether a process lives that may be of this machine or of another.

    Args:
        identity: Its own.
        directory: That of its run, if it is here; may not exist.
        wait: Seconds to look on, where only time can tell: longer than a process keeps silent.

    Returns:
        `unknown` where nothing tells.
    """
    place = identity.partition("@")[2].split(".")[1:]
    here = _place()
    if place[:1] == here[:1] and (len(place) < 2 or place == here):
        return "alive" if is_alive(identity) else "dead"
    sign = directory / ALIVE_NAME if directory is not None else None
    if sign is None or not sign.is_file():
        return "unknown"
    # One that was killed just now is still being cleared away, with the loader workers that share its lock.
    deadline = time.monotonic() + min(wait, LINGER_SECONDS)
    while _is_locked(sign):
        if time.monotonic() >= deadline:
            return "alive"
        time.sleep(0.2)
    if place[:1] == here[:1] and fcntl is not None:
        # Another container of this machine: the system has let go of the lock of one that has ended.
        return "dead" if time.time() - sign.stat().st_mtime > BEAT_SECONDS or wait else "unknown"
    seen, deadline = sign.stat().st_mtime_ns, time.monotonic() + wait
    if time.time() - seen / 1e9 > SILENT_SECONDS:
        return "dead"
    while time.monotonic() < deadline:
        time.sleep(0.2)
        # Opened, so that a file system of a network asks its server.
        with sign.open("rb") as file:
            if os.fstat(file.fileno()).st_mtime_ns != seen:
                return "alive"
    return "dead" if wait else "unknown"


class Presence:
    """Shows to other containers and machines, by a file in a run's directory, that this process works on it.

    Args:
        directory: The run's.

    Attributes:
        taken: Whether another process has shown its presence before and is still there.
    """

    # Directories that this process works on already, by another logger.
    _own: ClassVar[set[Path]] = set()

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.taken = False
        self._path = directory / ALIVE_NAME
        self._stopped = threading.Event()
        self._file = self._path.open("ab")
        self._holds = False
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._holds = True
                Presence._own.add(directory)
            except BlockingIOError:
                self.taken = directory not in Presence._own
            except OSError:
                # A file system without locks: the file's time has to do.
                pass
        threading.Thread(target=self._beat, name="presence", daemon=True).start()

    @classmethod
    def claim(cls, directory: Path) -> "Presence":
        """Show it, unless another process works on the run.

        Raises:
            UserError: If one does.
        """
        presence = cls(directory)
        if presence.taken:
            presence.end()
            raise UserError(
                f"The run {directory.name} is still going on in another process, which holds {shown_path(directory)}: "
                "stop that one first, or start a new run."
            )
        return presence

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            try:
                os.utime(self._path)
            except OSError:
                # A disk that is away for a while; the next time may be better.
                continue

    def end(self) -> None:
        """Be gone; may be called again."""
        self._stopped.set()
        if self._holds and fcntl is not None:
            # Loader workers have inherited the open file, with its lock.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            Presence._own.discard(self.directory)
            self._holds = False
        self._file.close()


def is_worked_on(directory: Path) -> bool:
    """Whether another process of this machine, or one whose locks are seen here, works on the run of a directory."""
    sign = directory / ALIVE_NAME
    return directory not in Presence._own and sign.is_file() and _is_locked(sign)


def _is_locked(path: Path) -> bool:
    """Whether somebody works on the run of this file."""
    if fcntl is None:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _place() -> list[str]:
    """Boot of this machine and this process's namespace of process ids, as far as the system has them."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip()[:8]] if boot.exists() else []
    try:
        return [*parts, str(namespace.stat().st_ino)] if parts else parts
    except OSError:
        return parts


def _start_time(process_id: int) -> str:
    """Start of a process, in whatever unit the system has; empty if it does not exist or is a zombie."""
    statistics = Path(f"/proc/{process_id}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the command in brackets and may itself hold spaces and brackets.
            fields = statistics.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in ("Z", "X") else fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(process_id)], capture_output=True, text=True, check=False)
    return "-".join(answer.stdout.split())
