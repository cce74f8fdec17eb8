"""fit, validate, test, predict: LightningCLI in subclass mode, with errors that a person can use.

Differences from Lightning's own: a mistake in a config is one sentence with the nearest right name; settings given by
the person win over those in a checkpoint; `--ckpt_path` takes "last", a run or a path and continues the same run.
"""

from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lit_pretrain.backbone
import lit_pretrain.data
import lit_pretrain.modules
import lit_pretrain.objectives
from lit_pretrain.arguments import CONFIG_OPTIONS, replaced, value_of, values_of
from lit_pretrain.config_errors import check_top_level, explain
from lit_pretrain.data.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.errors import UserError
from lit_pretrain.memory import keep_memory
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.predicting import with_data_to_predict
from lit_pretrain.quiet import quieten
from lit_pretrain.tracking.find import find_checkpoint, run_directory_of_checkpoint
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.save_config import SaveConfig
from lit_pretrain.trainer import Trainer

# Classes that a config may name shortly, with their modules imported above.
SUITE = (lit_pretrain.backbone, lit_pretrain.data, lit_pretrain.modules, lit_pretrain.objectives)


class ConfigError(UserError):
    """What a parser says, before it is explained."""


class Parser(LightningArgumentParser):
    """Raises where argparse would print its whole usage and leave; there is a parser for every class in a config."""

    # What all parsers have said, the innermost first; the outermost message is made of theirs.
    messages: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Else --trainer.max_step is taken for the one setting that begins so.
        self.allow_abbrev = False

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Keep the message and raise it."""
        Parser.messages.append(message)
        raise ConfigError(message) from ex


class CommandLine(LightningCLI):
    """LightningCLI with the suite's trainer, errors and resuming."""

    config_name: str = "run"

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's settings override the person's; here they stay as they are given."""

    def instantiate_classes(self) -> None:
        """As Lightning's; with a checkpoint all weights are its own, and what they once started from is not read.

        That may be gone by now, or, if it was called "last", be another.
        """
        self.given_config = self.config
        checkpoint, model = self._get(self.config, "ckpt_path"), self._get(self.config, "model")
        fine_tuning = model.class_path.endswith(".FineTuning")
        embedding = model.class_path.endswith(".ContrastivePretraining") and self.subcommand == "predict"
        if not checkpoint and (fine_tuning and self.subcommand != "fit" or embedding):
            kind, part = ("fine-tuned checkpoint", "a head") if fine_tuning else ("checkpoint", "towers")
            raise UserError(
                f"{self.subcommand} without a {kind} would use {part} that {'has' if fine_tuning else 'have'} learned "
                "nothing: name a run by --ckpt_path."
            )
        record, lost = {}, False
        if checkpoint and Path(checkpoint).is_file():
            self.config = self.config.clone()
            model, data = self._get(self.config, "model"), self._get(self.config, "data")
            record = read_checkpoint(checkpoint)["lit_pretrain"]
            if embedding:
                # The checkpoint's own, since texts or pictures alone are no data that a config's could be made for.
                model.class_path, model.init_args = f"{model.class_path}.from_checkpoint", Namespace(path=checkpoint)
            else:
                start_from_checkpoint(model, checkpoint, record, self.subcommand)
            lost = forget_lost_tokenizers(data)
        super().instantiate_classes()
        if lost and "tokenizer" in record:
            # Without one, a data module may train one of its own.
            for part in (self.datamodule, *getattr(self.datamodule, "parts", {}).values()):
                if isinstance(part, LightningDataModule) and "tokenizer" in vars(part):
                    part.tokenizer = tokenizer_from_json(record["tokenizer"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; its MLflow logger gets the config's name, and the run to continue."""
        # What is written down is what was given.
        self.config = self.given_config
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise_user_error_within(error)
            sentence = " ".join(str(error).split()).split(" Find a complete")[0].rstrip(".!, ")
            raise UserError(f"The trainer cannot be made ({sentence}): correct the trainer's settings.") from error
        # What is measured with a checkpoint is a run of its own, which names the one it comes from.
        checkpoint = self._get(self.config, "ckpt_path") if self.subcommand == "fit" else None
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.suggest_name(self.config_name)
                if checkpoint:
                    logger.resume_from(checkpoint)
        return trainer


def start_from_checkpoint(model: Namespace, checkpoint: str, record: dict[str, Any], subcommand: str) -> None:
    """Let a model take from a checkpoint of its own kind what its config would read elsewhere: encoders, tokenizer.

    Args:
        model: Its config, which is changed.
        checkpoint: Path of the file.
        record: What the checkpoint tells of itself.
        subcommand: Which weights are wanted for.
    """
    settings = model.init_args
    if model.class_path.endswith(".FineTuning") and (settings.init_from is not None or subcommand != "fit"):
        settings.encoder, settings.init_from = None, checkpoint
    if model.class_path.rpartition(".")[2] != record["module"]:
        # Whoever loads it says so.
        return
    for name in ("encoder", "text_encoder", "vision_encoder"):
        encoder = settings.get(name)
        if name in record and encoder is not None and encoder.class_path.endswith(".from_pretrained"):
            # As it was built; its weights are loaded with all others.
            encoder.class_path = encoder.class_path.replace(".from_pretrained", ".from_settings")
            encoder.init_args = Namespace(settings=record[name])
    for tower in ("text", "vision"):
        if f"{tower}_encoder" in record and settings[tower].init_from is not None:
            settings[tower].init_from = f"{checkpoint}:{tower}"


def forget_lost_tokenizers(data: Namespace) -> bool:
    """Set every `tokenizer` of a data module's config, and of those within it, to null if its file is gone.

    Returns:
        Whether there was one.
    """
    lost = False
    for name, value in vars(data.get("init_args", Namespace())).items():
        if isinstance(value, Namespace) and "init_args" in value:
            lost = forget_lost_tokenizers(value) or lost
        elif name == "tokenizer" and value and not Path(value).expanduser().exists():
            data.init_args.tokenizer, lost = None, True
    return lost


def run(arguments: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict` with its arguments.

    Raises:
        UserError: If an argument or a config is wrong.
    """
    command_line(arguments, CommandLine)
    return 0


def command_line(arguments: list[str], kind: type[CommandLine]) -> CommandLine:
    """As `run`, by a command line of one's own; it has run when it is returned.

    Raises:
        UserError: If an argument or a config is wrong.
    """
    arguments = with_data_to_predict(with_checkpoint_config(arguments))
    CommandLine.config_name = config_name(arguments)
    Parser.messages.clear()
    quieten()
    keep_memory()
    try:
        return kind(
            LightningModule,
            LightningDataModule,
            trainer_class=Trainer,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=arguments,
        )
    except ConfigError as error:
        raise UserError(explain(Parser.messages, values_of(arguments, *CONFIG_OPTIONS))) from error
    except ValueError as error:
        raise_user_error_within(error)
        raise


def raise_user_error_within(error: BaseException) -> None:
    """Raise the `UserError` of a constructor that jsonargparse has wrapped, if there is one."""
    latest = UserError.latest
    if latest is not None and " ".join(str(latest).split()) in " ".join(str(error).split()):
        raise latest


def with_checkpoint_config(arguments: list[str]) -> list[str]:
    """Replace what `--ckpt_path` names by a path, and without any `--config` add the one of its run."""
    reference = value_of(arguments, "--ckpt_path")
    if reference is None:
        return arguments
    configs = values_of(arguments, *CONFIG_OPTIONS)
    checkpoint = find_checkpoint(reference, experiment_of(configs, arguments))
    if checkpoint.is_file():
        read_checkpoint(checkpoint)
    arguments = replaced(arguments, "--ckpt_path", str(checkpoint))
    if not configs:
        directory = run_directory_of_checkpoint(checkpoint)
        saved = directory / "config.yaml" if directory else None
        if saved is None or not saved.is_file():
            raise UserError(f"{checkpoint} has no config.yaml of its run beside it: give --config.")
        arguments = [arguments[0], "--config", str(saved), *arguments[1:]]
    return arguments


def experiment_of(configs: list[str], arguments: list[str]) -> str | None:
    """The experiment that configs and arguments name, so that "last" is not the checkpoint of another one."""
    experiment = None
    for path in configs:
        content = read_yaml(path)
        logger = (content.get("trainer") or {}).get("logger") if isinstance(content.get("trainer"), dict) else None
        if isinstance(logger, dict):
            experiment = (logger.get("init_args") or {}).get("experiment", experiment)
    return (
        value_of(arguments, "--trainer.logger.init_args.experiment")
        or value_of(arguments, "--trainer.logger.experiment")
        or experiment
    )


def read_yaml(path: str) -> dict[str, Any]:
    """A config file's content.

    Raises:
        UserError: If it is missing, is not YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The config {path} cannot be read ({error.strerror}): check its path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"The config {path} is not valid YAML{where} ({problem}): correct it.") from error
    if not isinstance(content, dict):
        raise UserError(f"The config {path} holds no settings: give trainer, model and data.")
    if sentence := check_top_level(path, content):
        raise UserError(sentence)
    return content


def config_name(arguments: list[str]) -> str:
    """The first config's file name without its ending, after which the run is named; checks that all can be read."""
    configs = values_of(arguments, *CONFIG_OPTIONS)
    for path in configs:
        if not path.lstrip().startswith("{"):
            read_yaml(path)
    if not configs:
        return "run"
    path = Path(configs[0])
    return path.parent.name if path.stem == "config" else path.stem
