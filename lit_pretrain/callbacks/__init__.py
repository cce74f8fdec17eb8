"""What runs beside the training: throughput, progress, examples to look at, orderly interruption, predictions."""

from lit_pretrain.callbacks.examples import Examples
from lit_pretrain.callbacks.interruption import Interruption
from lit_pretrain.callbacks.last_checkpoint import LastCheckpoint
from lit_pretrain.callbacks.prediction_writer import PredictionWriter
from lit_pretrain.callbacks.progress import ProgressBar
from lit_pretrain.callbacks.summary import Summary
from lit_pretrain.callbacks.throughput import Throughput

__all__ = ["Examples", "Interruption", "LastCheckpoint", "PredictionWriter", "ProgressBar", "Summary", "Throughput"]
