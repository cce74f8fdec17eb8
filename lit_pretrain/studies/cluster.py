"""The machines of a Ray cluster: every training of a study is a task there, which has its cores and GPUs to itself.

A task is a process as on one machine (`processes.py`), on whichever machine has room for it, with the same files: so
all machines see the runs directory under the same path. Ray hands out places, and nothing else: what has finished is
known from the study's files. What a machine takes with it when it goes is begun anew on another.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError, counted
from lit_pretrain.studies import cluster_check, cluster_task
from lit_pretrain.studies.cluster_task import Answer, Place
from lit_pretrain.studies.processes import describe_exit
from lit_pretrain.tracking.paths import resolve_runs_directory

# Most seconds in which Ray is imported, and in which a machine of a cluster begins something.
IMPORT_SECONDS, MACHINE_SECONDS = 60.0, 120.0
# Between looks whether there still is a machine for what waits.
LOOK_SECONDS = 10.0
# How often a task is begun anew.
RESTARTS = 3
# Variables that are this machine's and are to be those of all others.
SHARED = ("HF_", "LIT_PRETRAIN_", "MLFLOW_")
# Tasks hand over paths: the least that Ray takes for its store of objects.
STORE_BYTES = 80 << 20


class ClusterProcess:
    """A task, with what `multiprocessing` has of a process.

    Args:
        reference: Ray's, of an `Answer`.

    Attributes:
        exitcode: Of its process; null while it waits or runs.
        lost: Why it came to no end of its own, with its machine or its process; empty if it did.
        reason: What is to be said of it beside that.
        seconds: That it took; null if nobody knows.
    """

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        self.exitcode: int | None = None
        self.answer: Answer | None = None
        self.lost = self.reason = ""
        self.seconds: float | None = None
        self._stopped = False

    def join(self) -> None:
        """Wait for its end."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        if self.exitcode is not None:
            return
        try:
            self.answer = ray.get(self.reference)
        except TaskCancelledError:
            self.exitcode = -signal.SIGTERM
        except RayTaskError as error:
            self.exitcode, self.reason = 1, sentence(error.cause)
        except RayError as error:
            self.exitcode, self.lost = 1, f"its machine or Ray's process there is gone ({type(error).__name__})"
        else:
            self.exitcode, self.seconds = self.answer.code, self.answer.seconds
            self.reason = self.answer.refused or self.answer.broken
            if self.exitcode < 0:
                self.lost = f"its process on {self.answer.machine} ended with {describe_exit(self.exitcode)}"
        if self._stopped:
            self.lost = ""

    def terminate(self) -> None:
        """Let it finish its step and save."""
        self._cancel(force=False)

    def kill(self) -> None:
        """End it at once."""
        self._cancel(force=True)

    def _cancel(self, force: bool) -> None:
        import ray

        self._stopped = True
        ray.cancel(self.reference, force=force)


class Cluster:
    """A connection to a cluster.

    Args:
        address: `auto` for the one that this machine is part of, HOST:PORT of its head, or null for one of this machine
            alone, which ends with the study.
        threads: Of each training; null for one.
        say: Told if nothing can go on.

    Raises:
        UserError: If Ray is missing, the cluster does not answer, or one of its machines cannot do a study.
    """

    def __init__(self, address: str | None, threads: int | None, say: Callable[[str], None]) -> None:
        self.most, self.threads, self.say = math.inf, threads or 1, say
        self._told = False
        # They exist, so that other machines can be asked whether they see them.
        runs = resolve_runs_directory()
        runs.mkdir(parents=True, exist_ok=True)
        shared = {name: value for name, value in os.environ.items() if name.startswith(SHARED)}
        # What the tokenizers' library goes by.
        self.place = Place(os.getcwd(), str(runs.resolve()), shared | {"RAYON_NUM_THREADS": str(self.threads)})
        connect(address)
        try:
            self._look_at_machines()
        except BaseException:
            self.close()
            raise

    def _look_at_machines(self) -> None:
        """See that every machine can do a study."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(num_cpus=0, max_retries=0)(cluster_task.look)
        asked = {
            node["NodeManagerHostname"]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(self.place)
            for node in machines()
        }
        for machine, reference in asked.items():
            try:
                answer = ray.get(reference, timeout=MACHINE_SECONDS)
            except GetTimeoutError as error:
                raise UserError(
                    f"The machine {machine} of the cluster has begun nothing for {MACHINE_SECONDS:.0f} s: see Ray's "
                    "logs there, or take it out of the cluster."
                ) from error
            except RayTaskError as error:
                raise UserError(
                    f"The machine {machine} of the cluster cannot load lit_pretrain ({sentence(error.cause)}): install "
                    "there what is installed here."
                ) from error
            except RayError:
                # Gone meanwhile.
                continue
            if answer.refused:
                raise UserError(answer.refused)

    def __str__(self) -> str:
        found = [node["Resources"] for node in machines()]
        cores, gpus = (sum(one.get(kind, 0) for one in found) for kind in ("CPU", "GPU"))
        return f"{counted(len(found), 'machine')} with {counted(int(cores), 'core')} and {counted(int(gpus), 'GPU')}"

    def check(self, name: str, config: dict[str, Any]) -> None:
        """Raise `UserError` if no machine has what a training of a config takes: Ray would wait for one."""
        needs = self.needs(name, config)
        if not self._places(needs):
            raise UserError(
                f"{name} takes {told(needs)} on one machine ({self.threads} for a process by --threads, and one for "
                f"each of its data.num_workers; trainer.devices), and the largest of the cluster has {largest()}: "
                "lower them, or let a larger machine join."
            )

    @property
    def needs_of_part(self) -> dict[str, float]:
        """What a part of a cache takes: threads.

        Raises:
            UserError: If no machine has them.
        """
        needs: dict[str, float] = {"num_cpus": self.threads, "num_gpus": 0}
        if not self._places(needs):
            raise UserError(
                f"--threads is {self.threads}, and the largest machine of the cluster has {largest()}: lower it, or "
                "let a larger machine join."
            )
        return needs

    def needs(self, name: str, config: dict[str, Any]) -> dict[str, float]:
        """What a training takes of its machine: `num_cpus` and `num_gpus`.

        Raises:
            UserError: If its config says nothing that can be handed out.
        """
        trainer, data = config.get("trainer") or {}, (config.get("data") or {}).get("init_args") or {}
        if int(trainer.get("num_nodes") or 1) > 1:
            raise UserError(
                f"{name}: trainer.num_nodes is {trainer['num_nodes']}, and --engine ray gives each a machine, or "
                "a part of one: set it to 1."
            )
        accelerator, devices = str(trainer.get("accelerator") or "auto"), trainer.get("devices", "auto")
        wants = accelerator in ("gpu", "cuda") or (accelerator == "auto" and any(gpus_of(node) for node in machines()))
        number = 1 if str(devices) in ("auto", "-1", "None") else as_number(name, devices)
        cores = number * (self.threads + int(data.get("num_workers") or 0))
        return {"num_cpus": cores, "num_gpus": number if wants else 0}

    def _places(self, needs: dict[str, float]) -> int:
        """How many such trainings the cluster has room for."""
        return sum(room(node["Resources"], needs) for node in machines())

    def at_a_time(self, config: dict[str, Any]) -> int:
        """How many trainings of a config share the cluster."""
        return max(1, self._places(self.needs("", config)))

    def start(
        self, function: Callable[..., Any], *arguments: Any, log: Path, config: dict[str, Any], name: str
    ) -> ClusterProcess:
        """As `processes.start`, on any machine that has room, as soon as one has."""
        return self._task(cluster_task.train, function, arguments, log, self.needs(name, config), name)

    def call(self, function: Callable[..., Any], *arguments: Any, log: Path, config: dict[str, Any], name: str) -> Any:
        """As `processes.call`, likewise.

        Raises:
            UserError: If the function raised one.
            RuntimeError: If it broke otherwise.
        """
        return self.call_all(function, [(arguments, log)], self.needs(name, config), name)[0]

    def call_all(
        self, function: Callable[..., Any], calls: Sequence[tuple[tuple, Path]], needs: dict[str, float], name: str
    ) -> list[Any]:
        """As `call`, with many arguments, each with its log, wherever there is room at the same time."""

        def begin(place: int) -> ClusterProcess:
            return self._task(cluster_task.call, function, *calls[place], needs, name)

        going = {begin(place): (place, RESTARTS) for place in range(len(calls))}
        values: dict[int, Any] = {}
        try:
            while going:
                for process in self.wait(list(going)):
                    place, restarts = going.pop(process)
                    if process.lost and restarts:
                        going[begin(place)] = place, restarts - 1
                    elif process.answer is not None and process.answer.refused:
                        raise UserError(process.answer.refused)
                    elif process.lost or process.reason or process.answer is None:
                        raise RuntimeError(process.lost or process.reason)
                    else:
                        values[place] = process.answer.value
        except BaseException:
            for process in going:
                process.terminate()
            for process in going:
                process.join()
            raise
        return [values[place] for place in range(len(calls))]

    def _task(
        self,
        work: Callable[..., Answer],
        function: Any,
        arguments: tuple,
        log: Path,
        needs: dict[str, float],
        name: str,
    ) -> ClusterProcess:
        import ray

        # Ray lets no process have two tasks of a GPU one after another, since it would keep its memory: ours never has.
        task = ray.remote(max_retries=0, max_calls=0)(work).options(**needs, name=name)
        return ClusterProcess(task.remote(self.place, function, arguments, str(log)))

    def wait(self, processes: Sequence[ClusterProcess]) -> list[ClusterProcess]:
        """Those that have ended, of which there is at least one."""
        import ray

        by_reference = {process.reference: process for process in processes}
        while True:
            ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=LOOK_SECONDS)
            for reference in ready:
                by_reference[reference].join()
            if ready:
                return [by_reference[reference] for reference in ready]
            self._tell_if_nothing_is_left()

    def _tell_if_nothing_is_left(self) -> None:
        """Say it once if the cluster has lost all its machines but a head that only hands out work."""
        if self._told or any(node["Resources"].get("CPU", 0) for node in machines()):
            return
        self._told = True
        self.say("No machine of the cluster is left: waiting for one; Ctrl-C ends this, the same command goes on.")

    def close(self) -> None:
        """Leave the cluster; what still runs there for this study is stopped in order."""
        import ray

        ray.shutdown()


def connect(address: str | None) -> None:
    """Let this process be a driver of Ray's.

    Raises:
        UserError: If it cannot be.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError("--engine ray needs Ray: pip install 'lit_pretrain[cluster]'.") from error
    settings: dict[str, Any] = {"address": find(address)} if address else alone()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"The Ray cluster {address or 'of this machine'} cannot be used: {sentence(error)}.") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray's own would end the process where the study stops its trainings in order.
            signal.signal(signal.SIGTERM, before)


def alone() -> dict[str, Any]:
    """Settings of a cluster of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return {"address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES}


def find(address: str) -> str:
    """The address of a cluster that answers.

    Raises:
        UserError: If none does, soon.
    """
    advice = "start one with ray start --head, or give --address HOST:PORT as that printed it"
    if address.startswith("ray://"):
        raise UserError(f"--address is {address}, Ray's address for clients elsewhere: {advice}, on a machine of it.")
    command = [sys.executable, "-P", cluster_check.__file__, address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
        line = answer.stdout.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        line = "Ray cannot be imported"
    word, _, found = line.partition(" ")
    if word == "found":
        return found
    reason = line.rstrip(".") or "Ray gave it up"
    raise UserError(f"No Ray cluster can be reached by --address {address} ({reason}): {advice}.")


def machines() -> list[dict[str, Any]]:
    """Those of the cluster that live."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def gpus_of(node: dict[str, Any]) -> int:
    """GPUs of a machine."""
    return int(node["Resources"].get("GPU", 0))


def room(resources: dict[str, float], needs: dict[str, float]) -> int:
    """How many times a machine has what a training takes."""
    times = [
        resources.get(kind, 0) // needs[name]
        for kind, name in (("CPU", "num_cpus"), ("GPU", "num_gpus"))
        if needs[name]
    ]
    return int(min(times))


def told(needs: dict[str, float]) -> str:
    """What a training takes, in words."""
    cores, gpus = counted(int(needs["num_cpus"]), "core"), int(needs["num_gpus"])
    return f"{cores} and {counted(gpus, 'GPU')}" if gpus else cores


def largest() -> str:
    """The most that one machine has, in words."""
    cores, gpus = (max((node["Resources"].get(kind, 0) for node in machines()), default=0) for kind in ("CPU", "GPU"))
    return f"{counted(int(cores), 'core')} and {counted(int(gpus), 'GPU')}"


def as_number(name: str, devices: Any) -> int:
    """How many devices a trainer asks for.

    Raises:
        UserError: If it names which: Ray hands them out.
    """
    if isinstance(devices, int) or (isinstance(devices, str) and devices.isdecimal()):
        return int(devices)
    raise UserError(
        f"{name}: trainer.devices is {devices}, which names devices, and --engine ray hands them out: set a number."
    )


def sentence(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
