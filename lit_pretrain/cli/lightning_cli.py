"""fit, validate, test, predict: LightningCLI in subclass mode, with errors that a person can use.

Differences from Lightning's own: a mistake in a config is one sentence with the nearest right name; settings given by
the person win over those in a checkpoint; `--ckpt_path` takes "last", a run or a path and continues the same run.
"""

import contextvars
import dataclasses
import json
import pkgutil
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast, get_args, get_origin

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import lit_pretrain.backbone
import lit_pretrain.data
import lit_pretrain.modules
import lit_pretrain.objectives
from lit_pretrain.class_paths import arguments_of, is_ours
from lit_pretrain.cli import namespaces
from lit_pretrain.cli.arguments import CONFIG_OPTIONS, replaced, value_of, values_of, without
from lit_pretrain.cli.class_parsers import made_once
from lit_pretrain.cli.config_errors import (
    check_top_level,
    explain,
    explain_instantiation,
    explain_lightning,
    explain_order,
)
from lit_pretrain.cli.prediction_data import with_data_to_predict
from lit_pretrain.data.text.document_data_module import DocumentDataModule
from lit_pretrain.data.text.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.errors import UserError
from lit_pretrain.memory import keep_memory
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.checkpoints import read_record
from lit_pretrain.modules.growth import GrowthConfig
from lit_pretrain.modules.pretraining import Pretraining
from lit_pretrain.quiet import quieten
from lit_pretrain.required import required
from lit_pretrain.tracking.find import (
    DEFAULT_EXPERIMENT,
    find_checkpoint,
    last_checkpoint_of,
    run_directory_of_checkpoint,
)
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.other_loggers import NO_PLACE
from lit_pretrain.tracking.paths import shown_path
from lit_pretrain.tracking.run_record import RunRecorder
from lit_pretrain.tracking.save_config import SaveConfig, flatten_config
from lit_pretrain.tracking.slurm import run_to_go_on_with
from lit_pretrain.trainer import Trainer
from lit_pretrain.trainer_state import callbacks_of
from lit_pretrain.yaml_files import read_yaml

# Classes that a config may name shortly, with their modules imported above.
SUITE = (lit_pretrain.backbone, lit_pretrain.data, lit_pretrain.modules, lit_pretrain.objectives)
# Settings that have their effect at the beginning of a run, what weights are read from and the like.
# With what those have in runs of versions that did not know them.
STARTS = {
    "init_from": None,
    "pretrained": True,
    "path_or_hub_name": None,
    "source": None,
    "linear_probe_first": False,
    "new_pieces": 0,
    **{f"grow.{field.name}": None for field in dataclasses.fields(GrowthConfig)},
}
# Modules that `predict` takes from their checkpoint, which is all that embedding needs.
EMBEDDING = (ContrastivePretraining, TextPretraining, VisionPretraining)


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

    def add_class_arguments(self, theclass: Any, *arguments: Any, **settings: Any) -> list[str]:
        """As Lightning's; a logger without a `save_dir` is given the run's directory."""
        added = super().add_class_arguments(theclass, *arguments, **settings)
        if isinstance(theclass, type) and issubclass(theclass, Logger):
            for action in self._actions:
                if action.dest == "save_dir" and (action.dest in self.required_args or action.default == "."):
                    action.default = NO_PLACE
                    self.required_args.discard(action.dest)
        return added

    def parse_args(self, args: Any = None, *rest: Any, **settings: Any) -> Any:
        """As jsonargparse's, which (4.47) hands a null of the command line down to a class as the text None."""
        if isinstance(args, list) and len(args) == 1 and str(args[0]).startswith("--"):
            args = [re.sub(r"^(--[\w.+]+)=None$", r"\1=null", str(args[0]))]
        return super().parse_args(args, *rest, **settings)

    def _dump_cleanup_actions(self, cfg: Any, actions: Any, dump_kwargs: dict[str, Any], prefix: str = "") -> None:
        """As jsonargparse's (4.47), which writes the settings of every class as YAML and reads them again at once."""
        super()._dump_cleanup_actions(cfg, actions, dump_kwargs | {"format": namespaces.NESTED}, prefix)

    def _dump_delete_default_entries(self, subcfg: dict[str, Any], subdefaults: dict[str, Any]) -> None:
        """As jsonargparse's (4.47), which looks for a class in a default of null where a config names one."""
        defaults = {
            name: {} if default is None and isinstance(subcfg.get(name), dict) else default
            for name, default in subdefaults.items()
        }
        super()._dump_delete_default_entries(subcfg, defaults)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Keep the message and raise it."""
        Parser.messages.append(message)
        raise ConfigError(message) from ex


class CommandLine(LightningCLI):
    """LightningCLI with the suite's trainer, errors and resuming."""

    config_name: str = "run"
    # Words of the command line, and whether SLURM has given the same ones before.
    command: ClassVar[list[str]] = []
    requeued: bool = False

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, but only the one that is given: each gets a parser of its own, made anew for every command."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in CommandLine.command[:1]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's; the suite's own table of what was measured takes the place of Lightning's."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's; what `ckpt_path` names, in a file or on the command line, is a checkpoint's path afterwards.

        Raises:
            UserError: If there is no such checkpoint.
        """
        if args[0] == "predict" and value_of(args, "--data.path") is not None:
            # Other data may be of another class, which only the checkpoint tells.
            training = parser.parse_args(without(args, "--data"))["predict"]
            args = with_data_to_predict(args, training, checkpoint_named_in(training))
        if any(argument.partition("=")[0] == "--print_config" for argument in args):
            # It prints and leaves while it parses: what cannot be made must be told before.
            unprinted = [argument for argument in args if argument.partition("=")[0] != "--print_config"]
            check_nulls(parser.parse_args(unprinted)[args[0]])
        super().parse_arguments(parser, args)
        settings = self.config[self.config.subcommand]
        check_nulls(settings)
        checkpoint = checkpoint_named_in(settings)
        if checkpoint is None and self.config.subcommand == "fit":
            checkpoint = self.checkpoint_of_job(settings)
        if checkpoint is not None:
            settings.ckpt_path = str(checkpoint)

    def checkpoint_of_job(self, settings: Namespace) -> Path | None:
        """The checkpoint that a SLURM job which was queued anew goes on from, or null."""
        plugins = settings.trainer.get("plugins")
        for plugin in plugins if isinstance(plugins, list) else [plugins]:
            arguments = plugin.get("init_args", Namespace()) if isinstance(plugin, Namespace) else Namespace()
            if arguments.get("auto_requeue") is False:
                return None
        run = run_to_go_on_with(self.command, place_of_runs(settings)[1])
        if run is None:
            return None
        self.requeued = True
        checkpoint = required(last_checkpoint_of(run))
        rank_zero_info(
            f"This SLURM job was queued anew: it goes on with the run {run.run_name}, {shown_path(checkpoint)}."
        )
        return checkpoint

    def _dump_config(self) -> None:
        """As Lightning's, which checks once more what was parsed a moment ago, and writes and reads it as YAML."""
        if not hasattr(self, "config_dump"):
            dumped = self.parser.dump(self.config, format="json", skip_none=False, skip_validation=True)
            self.config_dump = json.loads(dumped)[self.config.subcommand]

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's settings override the person's; here they stay as they are given."""

    def instantiate_classes(self) -> None:
        """As Lightning's; with a checkpoint all weights are its own, and what they once started from is not read.

        That may be gone by now, or, if it was called "last", be another.
        """
        self.given_config = self.config
        checkpoint, model = self._get(self.config, "ckpt_path"), self._get(self.config, "model")
        kind, record, lost = class_named(model.class_path), {}, False
        if not checkpoint and self.subcommand != "fit":
            check_learned(required(self.subcommand), kind, model)
        if checkpoint and Path(checkpoint).exists():
            self.config = self.config.clone()
            model, data = self._get(self.config, "model"), self._get(self.config, "data")
            record = read_record(checkpoint)
            if self.subcommand == "fit" and model.class_path.rpartition(".")[2] == record["module"]:
                check_start(self.config[self.subcommand], checkpoint, record)
            if self.subcommand == "predict" and issubclass(kind, EMBEDDING):
                # The checkpoint's own, since texts or pictures alone are no data that a config's could be made for.
                model.class_path = f"{__name__}.{module_of_checkpoint.__name__}"
                model.init_args = Namespace(path=checkpoint, kind=f"{kind.__module__}.{kind.__qualname__}")
            else:
                start_from_checkpoint(model, checkpoint, record, required(self.subcommand))
            lost = forget_lost_tokenizers(data)
        super().instantiate_classes()
        if "tokenizer" not in record:
            return
        tokenizer = tokenizer_from_json(record["tokenizer"])
        for part in (self.datamodule, *getattr(self.datamodule, "parts", {}).values()):
            if lost and isinstance(part, LightningDataModule) and "tokenizer" in vars(part):
                # Without one, a data module may train one of its own.
                cast(Any, part).tokenizer = tokenizer
            if isinstance(part, DocumentDataModule):
                part.resumed_tokenizer = tokenizer
        if self.subcommand != "fit" and getattr(self.model, "tokenizer", tokenizer) is None:
            # What is measured or predicted may be other texts, on which the data would train another.
            self.model.tokenizer = tokenizer

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
        if self.subcommand == "fit":
            # Before any data are looked at.
            cast(Trainer, trainer).check_precision()
        # What is measured with a checkpoint is a run of its own, which names the one it comes from.
        checkpoint = self._get(self.config, "ckpt_path") if self.subcommand == "fit" else None
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.suggest_name(self.config_name)
                if checkpoint:
                    logger.resume_from(checkpoint, ended=self.requeued)
        for callback in callbacks_of(trainer):
            if isinstance(callback, RunRecorder):
                callback.command, callback.suggested_name, callback.checkpoint = (
                    self.command,
                    self.config_name,
                    checkpoint,
                )
        return cast(Trainer, trainer)


def check_start(settings: Namespace, checkpoint: str, record: dict[str, Any]) -> None:
    """Refuse to let a run go on with another start than it had: nothing is read there any more.

    Args:
        settings: Of `fit`.
        checkpoint: Of the run, beside whose config it lies.
        record: What the checkpoint tells of itself.

    Raises:
        UserError: If they name another.
    """
    directory = run_directory_of_checkpoint(Path(checkpoint))
    if directory is None or not (directory / "config.yaml").is_file():
        init_from = settings.model.init_args.get("init_from")
        if init_from is not None and "lineage" not in record:
            raise UserError(two_beginnings("model.init_from", init_from))
        return
    run_settings, config_settings = (
        {
            key: value
            for section in ("model", "data")
            for key, value in flatten_config(config.get(section) or {}, section)
            if setting_of_start(key) in STARTS and (section == "model" or key == "data.new_pieces")
        }
        for config in (read_config(str(directory / "config.yaml")), settings.as_dict())
    )
    # What is started from is told before how it grows.
    for key in sorted(run_settings.keys() | config_settings.keys(), key=lambda key: (".init_from" not in key, key)):
        default = STARTS[setting_of_start(key)]
        before, now = run_settings.get(key, default), config_settings.get(key, default)
        if before == now:
            continue
        if before is None and key.endswith(".init_from"):
            raise UserError(two_beginnings(key, str(now)))
        raise UserError(
            f"{key} is {'none' if now is None else now}, and the run that goes on had "
            f"{'none' if before is None else before}, which has had its effect: leave it as it was, or "
            "start a new run without --ckpt_path."
        )


def setting_of_start(key: str) -> str:
    """A flattened setting's name in `STARTS`: without what it is a setting of, but for the group of a growth."""
    owner, _, name = key.rpartition(".")
    return f"grow.{name}" if owner.endswith(".grow") else name


def two_beginnings(key: str, init_from: str) -> str:
    """What is said of a start and a checkpoint to go on with that had no such start."""
    return (
        f"{key} is {init_from}, which begins a new training, and --ckpt_path goes on with one that began without it: "
        "leave one of the two out."
    )


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
        settings.encoder, settings.init_from, settings.architecture = None, checkpoint, None
        forget_growth(settings)
    if model.class_path.rpartition(".")[2] != record["module"]:
        # Whoever loads it says so.
        return
    if settings.get("init_from") is not None:
        settings.init_from, settings.architecture, settings.pretrained = checkpoint, None, True
        forget_growth(settings)
    for name in ("encoder", "text_encoder", "vision_encoder"):
        encoder = settings.get(name)
        if name in record and encoder is not None and encoder.class_path.endswith(".from_pretrained"):
            # As it was built; its weights are loaded with all others.
            encoder.class_path = encoder.class_path.replace(".from_pretrained", ".from_settings")
            encoder.init_args = Namespace(settings=record[name])
    for tower in ("text", "vision"):
        if f"{tower}_encoder" in record and settings[tower].init_from is not None:
            settings[tower].init_from, settings[tower].architecture = f"{checkpoint}:{tower}", None


def forget_growth(settings: Namespace) -> None:
    """Let a model that starts from its own checkpoint, whose encoder has grown, not grow again."""
    if settings.get("grow") is not None:
        settings.grow = Namespace(dataclasses.asdict(GrowthConfig()))


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


@made_once()
def command_line(arguments: list[str], kind: type[CommandLine]) -> CommandLine:
    """As `run`, by a command line of one's own; it has run when it is returned.

    Raises:
        UserError: If an argument or a config is wrong.
    """
    CommandLine.command = arguments
    arguments = with_config_of_run(arguments)
    CommandLine.config_name = config_name(arguments)
    configs = values_of(arguments, *CONFIG_OPTIONS)
    Parser.messages.clear()
    quieten()
    keep_memory()
    try:
        # jsonargparse leaves its last parser in a variable of the context, and that parser all that it has made: the
        # model, its optimizer and the trainer.
        return contextvars.copy_context().run(
            kind,
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
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lit_pretrain"):
            raise
        missing = " ".join(str(error).split()).rstrip(". ")
        raise UserError(f"A package is missing ({missing}): install it, or leave out what needs it.") from error
    except ConfigError as error:
        raise UserError(explain_order(arguments) or explain(Parser.messages, configs)) from error
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise_user_error_within(error)
        if sentence := explain_instantiation(error, configs) or explain_lightning(error):
            raise UserError(sentence) from error
        raise


def check_nulls(settings: Namespace) -> None:
    """Refuse null for settings that no class could be made with, which jsonargparse (4.47) takes for any setting.

    Args:
        settings: Of a command, parsed.

    Raises:
        UserError: If a group is null, or a setting that must have a value.
    """
    for section in ("model", "data"):
        check_nulls_below(section, settings.get(section))


def check_nulls_below(place: str, chosen: Any) -> None:
    """As `check_nulls`, of a class of the suite's and those among its settings.

    Args:
        place: Its dotted key.
        chosen: Its `class_path` and `init_args`, or anything else.
    """
    if isinstance(chosen, list):
        for number, one in enumerate(chosen):
            check_nulls_below(f"{place}.{number}", one)
    if not isinstance(chosen, Namespace) or not chosen.get("init_args"):
        return
    kind = class_named(chosen.class_path)
    arguments = arguments_of(kind) if is_ours(kind) else {}
    for name, value in vars(chosen.init_args).items():
        if value is not None or name not in arguments:
            check_nulls_below(f"{place}.{name}", value)
            continue
        group, default = arguments[name].annotation, arguments[name].default
        if dataclasses.is_dataclass(group):
            raise UserError(
                f"{place}.{name} is null, and holds settings of {kind.__name__}: leave it out for its defaults, "
                f"or set {', '.join(field.name for field in dataclasses.fields(group)[:3])}, ..."
            )
        if isinstance(default, str | int | float) and not takes_null(group):
            raise UserError(
                f"{place}.{name} is null, and {kind.__name__} needs a value of it: leave it out for {default!r}, or "
                "set it."
            )


def takes_null(annotation: Any) -> bool:
    """Whether what is annotated so may be None, as far as that can be told."""
    plain = annotation in (str, int, float, bool) or get_origin(annotation) is Literal
    return not plain or None in get_args(annotation)


def class_named(class_path: str) -> type:
    """The class that a resolved `class_path` names, or whose method it does; of a function, any module's."""
    for path in (class_path, class_path.rpartition(".")[0]):
        if isinstance(kind := pkgutil.resolve_name(path), type):
            return kind
    return LightningModule


def module_of_checkpoint(path: str, kind: str) -> LightningModule:
    """A checkpoint's module as `from_checkpoint` of its class makes it; a `class_path` in a config.

    Args:
        path: The checkpoint.
        kind: The class, by the path that it is imported by.
    """
    return pkgutil.resolve_name(kind).from_checkpoint(path)


def check_learned(command: str, kind: type, model: Namespace) -> None:
    """Refuse to measure or to use, without a checkpoint, what has learned nothing.

    Args:
        command: `validate`, `test` or `predict`.
        kind: The model's class.
        model: Its settings; public weights are enough for an encoder, and for no head and no projection.

    Raises:
        UserError: In one sentence.
    """
    if issubclass(kind, FineTuning):
        part = "fine-tuned checkpoint would use a head that has"
    elif issubclass(kind, ContrastivePretraining) and (command == "predict" or not brings_weights(model, towers=True)):
        part = "checkpoint would use towers that have"
    elif issubclass(kind, Pretraining) and not brings_weights(model):
        part = "checkpoint would use weights that have"
    else:
        return
    raise UserError(f"{command} without a {part} learned nothing: name a run by --ckpt_path.")


def brings_weights(settings: Any, towers: bool = False) -> bool:
    """Whether settings of a model name weights to start from, those of both towers if there are two."""
    if isinstance(settings, list):
        return any(brings_weights(setting) for setting in settings)
    if not isinstance(settings, Namespace):
        return False
    if towers:
        return all(brings_weights(settings.init_args.get(name)) for name in ("text", "vision"))
    if settings.get("init_from") is not None and settings.get("pretrained", True):
        return True
    if str(settings.get("class_path", "")).endswith((".from_pretrained", ".from_checkpoint")):
        return True
    return any(brings_weights(value) for value in vars(settings).values())


def raise_user_error_within(error: BaseException) -> None:
    """Raise the `UserError` of a constructor that jsonargparse has wrapped, if there is one."""
    latest = UserError.latest
    if latest is not None and " ".join(str(latest).split()) in " ".join(str(error).split()):
        raise latest


def with_config_of_run(arguments: list[str]) -> list[str]:
    """Without any `--config`, take that of the run whose checkpoint `--ckpt_path` names, "last" being the newest."""
    reference = value_of(arguments, "--ckpt_path")
    if reference is None or values_of(arguments, *CONFIG_OPTIONS):
        return arguments
    checkpoint = find_checkpoint(reference)
    directory = run_directory_of_checkpoint(checkpoint)
    saved = directory / "config.yaml" if directory else None
    if saved is None or not saved.is_file():
        raise UserError(f"{checkpoint} has no config.yaml of its run beside it: give --config.")
    arguments = replaced(arguments, "--ckpt_path", str(checkpoint))
    return [arguments[0], "--config", str(saved), *arguments[1:]]


def checkpoint_named_in(settings: Namespace) -> Path | None:
    """The checkpoint that a command's parsed settings name, or null.

    Args:
        settings: Of the command; "last" is that of the newest run of the experiment that its logger logs to.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    reference = settings.get("ckpt_path")
    if reference is None:
        return None
    checkpoint = find_checkpoint(str(reference), *place_of_runs(settings))
    if checkpoint.exists():
        read_record(checkpoint)
    return checkpoint


def place_of_runs(settings: Namespace) -> tuple[str, str | None]:
    """Experiment and runs directory of a command's logger; the suite's own where it has another logger or none."""
    logger = settings.trainer.get("logger")
    for candidate in logger if isinstance(logger, list) else [logger]:
        if isinstance(candidate, Namespace) and candidate.class_path.endswith(f".{MLflowLogger.__name__}"):
            return candidate.init_args.experiment, candidate.init_args.runs_directory
    return DEFAULT_EXPERIMENT, None


def read_config(path: str) -> dict[str, Any]:
    """A config file's content.

    Raises:
        UserError: If it is missing, is not YAML, or holds no mapping.
    """
    content = read_yaml(path, "config")
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
            read_config(path)
    if not configs:
        return "run"
    first = Path(configs[0])
    return first.parent.name if first.stem == "config" else first.stem
