"""What happens around a training: progress, throughput, checkpoints, examples, panels, probes, reports, the summary."""

from lit_pretrain.callbacks.best_checkpoint import BestCheckpoint
from lit_pretrain.callbacks.description import Description
from lit_pretrain.callbacks.examples import Examples
from lit_pretrain.callbacks.interruption import Interruption
from lit_pretrain.callbacks.last_checkpoint import LastCheckpoint
from lit_pretrain.callbacks.monitor_check import MonitorCheck
from lit_pretrain.callbacks.online_probe import OnlineProbe
from lit_pretrain.callbacks.panels import Panels
from lit_pretrain.callbacks.prediction_writer import PredictionWriter
from lit_pretrain.callbacks.progress import ProgressBar
from lit_pretrain.callbacks.resuming import Resuming
from lit_pretrain.callbacks.shortcut_check import ShortcutCheck
from lit_pretrain.callbacks.step_sizes import StepSizes
from lit_pretrain.callbacks.summary import Summary
from lit_pretrain.callbacks.test_report import TestReport
from lit_pretrain.callbacks.throughput import Throughput
from lit_pretrain.callbacks.zero_shot import ZeroShot

__all__ = [
    "BestCheckpoint",
    "Description",
    "Examples",
    "Interruption",
    "LastCheckpoint",
    "MonitorCheck",
    "OnlineProbe",
    "Panels",
    "PredictionWriter",
    "ProgressBar",
    "Resuming",
    "ShortcutCheck",
    "StepSizes",
    "Summary",
    "TestReport",
    "Throughput",
    "ZeroShot",
]
