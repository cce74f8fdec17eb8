"""Lightning's Trainer with the defaults of this suite: precision by hardware, an MLflow logger, useful callbacks."""

import contextlib
import warnings
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import _PLUGIN_INPUT, Precision
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.data_connector import _DataConnector
from lightning.pytorch.trainer.states import TrainerFn

from lit_pretrain.callbacks import (
    BestCheckpoint,
    Description,
    Examples,
    Interruption,
    LastCheckpoint,
    MonitorCheck,
    Panels,
    PredictionWriter,
    ProgressBar,
    Resuming,
    StepSizes,
    Summary,
    TestReport,
    Throughput,
)
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.modules.rolling_back import check_roll_back
from lit_pretrain.modules.strategies import check_strategy
from lit_pretrain.precision import MatmulPrecision, resolve_matmul_precision, resolve_precision
from lit_pretrain.required import required
from lit_pretrain.tracking.checkpoint_io import AtomicCheckpointIO
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.paths import resolve_runs_directory
from lit_pretrain.tracking.run_record import RunRecorder
from lit_pretrain.trainer_state import callbacks_of, is_fast_run


class Trainer(lightning.Trainer):
    """Lightning's Trainer; every default below can be replaced in the YAML.

    Args:
        precision: As Lightning's, or `auto`: what a precision plugin says, else bf16-mixed where the GPU or CPU has
            bf16 in hardware, else 32-true.
        logger: null is MLflow in the runs directory, false is none; a run has its directory there all the same, unless
            `default_root_dir` names another place.
        callbacks: Added to the suite's own, or in the place of one of the same class.
        plugins: As Lightning's; checkpoints are written atomically unless a CheckpointIO among them says otherwise.
        enable_checkpointing: As Lightning's.
        enable_progress_bar: As Lightning's.
        enable_model_summary: As Lightning's, but off unless asked for: one line says what is trained.
        float32_matmul_precision: How matrices that are in fp32 are multiplied, for torch.set_float32_matmul_precision:
            `highest` (exact), `high` (TF32 on GPUs) or `medium`; `auto` is `high` on CUDA GPUs in mixed or half
            precision and `highest` there in 32-true, and changes nothing elsewhere. It holds for the whole process.
        kwargs: As Lightning's.
    """

    def __init__(
        self,
        precision: _PRECISION_INPUT | Literal["auto"] | None = "auto",
        logger: Logger | list[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        plugins: _PLUGIN_INPUT | list[_PLUGIN_INPUT] | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = False,
        float32_matmul_precision: MatmulPrecision | Literal["auto"] = "auto",
        **kwargs: Any,
    ) -> None:
        for name in ("accumulate_grad_batches", "log_every_n_steps"):
            if kwargs.get(name) is not None and kwargs[name] < 1:
                raise UserError(f"trainer.{name} is {kwargs[name]}: give at least 1.")
        own = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        check_averaging(own)
        given_plugins = plugins if isinstance(plugins, list | tuple) else [plugins]
        if precision == "auto" and any(isinstance(plugin, Precision) for plugin in given_plugins):
            precision = None
        if barebones := bool(kwargs.get("barebones")):
            # Nothing beside the training, whatever else a config asks for: logs, checkpoints, progress.
            logger, enable_checkpointing, enable_progress_bar, enable_model_summary = False, None, None, None
            own = [callback for callback in own if not isinstance(callback, ModelCheckpoint)]
            kwargs |= dict.fromkeys(("log_every_n_steps", "num_sanity_val_steps", "profiler"))
            kwargs |= {"fast_dev_run": False, "detect_anomaly": False}
        elif logger is None or logger is True:
            logger = MLflowLogger()
        fast = bool(kwargs.get("fast_dev_run"))
        # Whether what no logger keeps goes to a directory of the run's own, rather than to one that a person chose.
        self.keeps_runs = kwargs.get("default_root_dir") is None and not fast and not barebones
        if kwargs.get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(resolve_runs_directory())
        if not barebones:
            own += default_callbacks(
                own, enable_checkpointing is not False and not fast, enable_progress_bar is not False
            )
        check_hardware(kwargs.get("accelerator"), kwargs.get("strategy"))
        with warnings.catch_warnings():
            # A training is refused, and what is measured says what it is measured in.
            warnings.filterwarnings("ignore", ".*AMP with fp16 is not supported on CPU.*")
            super().__init__(
                precision=None if precision is None else resolve_precision(precision),
                logger=logger,
                callbacks=own,
                plugins=with_atomic_checkpoints(plugins),
                enable_checkpointing=enable_checkpointing,
                enable_progress_bar=enable_progress_bar,
                enable_model_summary=enable_model_summary,
                **kwargs,
            )
        # Lightning takes bf16 instead.
        self._has_fp16 = str(precision) not in ("16", "16-mixed") or not isinstance(self.accelerator, CPUAccelerator)
        check_strategy(self.strategy)
        self._checkpoint_connector = CheckpointConnector(self)
        self._data_connector = DataConnector(self._data_connector)
        on_cuda = isinstance(self.accelerator, CUDAAccelerator)
        matmul_precision = resolve_matmul_precision(float32_matmul_precision, self.precision, on_cuda)
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)
        # The run must have begun, and which step is the last one be known, when the others ask for it.
        callbacks_of(self).sort(
            key=lambda one: 0 if isinstance(one, RunRecorder) else 1 if isinstance(one, Timer) else 2
        )

    def check_precision(self) -> None:
        """Refuse to train with another precision than that which was given.

        Raises:
            UserError: If it is fp16 and the CPU's.
        """
        if not self._has_fp16:
            raise UserError(
                "trainer.precision is 16-mixed, which a CPU does not have: set it to auto, bf16-mixed or 32-true."
            )

    def _run(self, model: Any, *arguments: Any, **settings: Any) -> Any:
        if self.state.fn == TrainerFn.FITTING:
            self.check_precision()
        if isinstance(model, BaseModule) and self.state.fn == TrainerFn.FITTING:
            check_average(model, callbacks_of(self))
            check_budget(model, self)
            if model.non_finite == "roll_back":
                check_roll_back(self)
        # Lightning gives it a place before there is a run, that of a logger or the working directory.
        profiler: Any = vars(self)["profiler"]
        self.places_profiler = getattr(profiler, "dirpath", "") is None
        return super()._run(model, *arguments, **settings)

    def save_checkpoint(self, filepath: Any, weights_only: bool | None = False, storage_options: Any = None) -> None:
        """As Lightning's: everything is saved unless `weights_only` is true."""
        average = None
        if isinstance(self.lightning_module, BaseModule):
            self.lightning_module.shard_again()
            average = self.lightning_module.average
        with contextlib.nullcontext() if average is None else average.set_aside():
            super().save_checkpoint(filepath, weights_only, storage_options)
        if isinstance(self.lightning_module, BaseModule) and not weights_only:
            self.lightning_module.roll_backs.note_checkpoint(str(filepath))


def check_averaging(callbacks: list[Callback]) -> None:
    """Let weights be averaged and nothing else.

    The modules' buffers are constants: keys, indices, masks, bins. Lightning averages them too, in floats, and so cuts
    whole numbers down: of a table of n-grams half of the keys became others.

    Args:
        callbacks: A person's.

    Raises:
        UserError: If one averages in the way that the suite's modules, which are built late, do not allow.
    """
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise UserError(
                "StochasticWeightAveraging copies a model before it is built: take WeightAveraging or "
                "EMAWeightAveraging of lightning.pytorch.callbacks."
            )
        if isinstance(callback, WeightAveraging):
            callback._use_buffers = False


def check_average(module: BaseModule, callbacks: list[Callback]) -> None:
    """Refuse two averages of the same weights.

    Raises:
        UserError: If the module averages its weights, and a callback does too.
    """
    others = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    if others and module.average_config.decay is not None:
        raise UserError(
            f"model.average.decay is {module.average_config.decay}, and {others[0]} among trainer.callbacks averages "
            "the same weights: leave one of the two out."
        )


def check_budget(module: BaseModule, trainer: lightning.Trainer) -> None:
    """Let the clock alone end a training that has a budget.

    Raises:
        UserError: If steps or epochs end it too, or `max_time` does before.
    """
    budget = module.schedule_config.budget
    if budget is None or is_fast_run(trainer):
        return
    for name in ("max_steps", "max_epochs"):
        limit = getattr(trainer, name)
        if limit not in (None, -1):
            raise UserError(
                f"model.schedule.budget {budget} ends the training by the clock, and trainer.{name} is {limit}: leave "
                f"one of the two out (trainer.{name}: -1)."
            )
    for timer in callbacks_of(trainer):
        if isinstance(timer, Timer) and timer._duration is not None and timer._duration < required(module.clock.budget):
            raise UserError(
                f"trainer.max_time ends the training before model.schedule.budget {budget} is over, and its learning "
                "rate low: raise the one, or lower the other."
            )
    # Lightning's own end, where none is given, is 1,000 epochs.
    trainer.fit_loop.max_epochs = -1


def check_hardware(accelerator: object, strategy: object) -> None:
    """Refuse the name of an accelerator or strategy that there is not, or of a device that this machine does not have.

    Raises:
        UserError: If so.
    """
    accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    for setting, name, names in (("accelerator", accelerator, accelerators), ("strategy", strategy, strategies)):
        if isinstance(name, str) and name.lower() not in names:
            raise UserError(
                f"trainer.{setting} is {name}, and there is {', '.join(sorted(names))}{nearest(name, names)}."
            )
    if not isinstance(accelerator, str) or accelerator.lower() == "auto":
        return
    devices = ("cuda", "mps") if accelerator.lower() == "gpu" else (accelerator.lower(),)
    if not any(AcceleratorRegistry[device]["accelerator"].is_available() for device in devices):
        raise UserError(
            f"trainer.accelerator is {accelerator}, and PyTorch finds no such device on this machine: set it to auto "
            "or cpu, or see what there is by python -m lit_pretrain doctor."
        )


def with_atomic_checkpoints(given: _PLUGIN_INPUT | list[_PLUGIN_INPUT] | None) -> list[_PLUGIN_INPUT]:
    """Plugins with the suite's way of writing checkpoints: alone, within one that wraps another, or not beside one."""
    plugins = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    writers = [plugin for plugin in plugins if isinstance(plugin, CheckpointIO)]
    for writer in writers:
        if isinstance(writer, _WrappingCheckpointIO) and writer.checkpoint_io is None:
            writer.checkpoint_io = AtomicCheckpointIO()
    return plugins if writers else [*plugins, AtomicCheckpointIO()]


def default_callbacks(callbacks: list[Callback], checkpointing: bool, progress_bar: bool) -> list[Callback]:
    """The suite's callbacks of whose class none is given."""
    kinds: list[type[Callback]] = [RunRecorder, Resuming, Throughput, Examples, Panels, TestReport]
    kinds += [Interruption, MonitorCheck, PredictionWriter, Summary, Description, StepSizes]
    if progress_bar and not any(isinstance(callback, RichProgressBar | TQDMProgressBar) for callback in callbacks):
        kinds.append(ProgressBar)
    if checkpointing:
        kinds.append(LastCheckpoint)
    made = [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in callbacks)]
    if checkpointing:
        own = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        # What a person adds, one for every thousand steps say, takes the place only of what it does itself.
        best = not any(callback.monitor is not None and callback.save_top_k != 0 for callback in own)
        last = not any(callback.save_last for callback in own)
        if best or last:
            made.append(BestCheckpoint(save_top_k=int(best), save_last=last))
    return made


class DataConnector(_DataConnector):
    """Lightning's; when the data are there, loggers without a place get one: they begin before callbacks are set up."""

    def __init__(self, former: _DataConnector) -> None:
        vars(self).update(vars(former))

    def prepare_data(self) -> None:
        """As Lightning's, and give loggers their places."""
        super().prepare_data()
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, RunRecorder):
                callback.place_loggers(self.trainer)


class CheckpointConnector(_CheckpointConnector):
    """Lightning's, which on SLURM would take any hpc_ckpt_N.ckpt of the working directory, whichever job's it is."""

    @property
    def _hpc_resume_path(self) -> None:
        return None
