"""Load of processors, memory, disk, network and GPUs in the course of a run, by MLflow's own monitors.

MLflow's thread asks the server before each sample, and ends when it does not answer. This one hands what it has
measured to the logger, which never waits and loses nothing.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PREFIX = "system/"
VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


def wants_system_metrics(setting: bool | None) -> bool:
    """Whether the load is logged: the setting, else what MLflow's own variable says.

    Raises:
        UserError: If it is asked for and cannot be measured.
    """
    wanted = os.environ.get(VARIABLE, "").strip().lower() in ("true", "1") if setting is None else setting
    if wanted and find_spec("psutil") is None:
        asked = f"{VARIABLE} is set" if setting is None else "MLflowLogger.system_metrics is true"
        raise UserError(
            f"{asked}, and psutil, which measures the load, is missing: pip install psutil, and nvidia-ml-py for GPUs."
        )
    return wanted


def start_monitor(run_id: str, tracking_uri: str, log: Callable[[dict[str, float]], None]) -> "SystemMetricsMonitor":
    """Start measuring; `finish` of what is returned ends it.

    Args:
        run_id: MLflow's.
        tracking_uri: Address of the store, which is not asked for anything.
        log: Takes the means since the last call, by name.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        """Logs elsewhere than MLflow's."""

        def monitor(self) -> None:
            """Measure until it is finished."""
            while not self._shutdown_event.is_set():
                for _ in range(self.samples_before_logging):
                    # What cannot be measured now, as of a disk that is away, may be measured later.
                    with contextlib.suppress(OSError, ValueError):
                        self.collect_metrics()
                    self._shutdown_event.wait(self.sampling_interval)
                metrics: dict[str, Any] = self.aggregate_metrics()
                if metrics:
                    log({f"{PREFIX}{name}": float(value) for name, value in metrics.items()})
                for monitor in self.monitors:
                    monitor.clear_metrics()

        def finish(self) -> None:
            """Stop measuring."""
            self._shutdown_event.set()
            if self._process is not None:
                self._process.join(timeout=2.0)
                self._process = None

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    monitor = Monitor(run_id, tracking_uri=tracking_uri)
    monitor.start()
    return monitor
