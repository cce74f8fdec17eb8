"""`python -m lit_pretrain`: training through Lightning, and commands that do not train and start without torch."""

# PYTHON_ARGCOMPLETE_OK

import argparse
import hashlib
import importlib
import importlib.util
import io
import os
import re
import sys
import time
import traceback
from typing import Any

from lit_pretrain import __version__
from lit_pretrain.argument_parser import ArgumentParser
from lit_pretrain.collector import import_for_good
from lit_pretrain.errors import UserError, nearest, without_credentials

TRAINING = {
    "fit": "train a model as a config says",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
    "predict": "answer or embed texts or pictures (--data.path FILE or FOLDER): labels, embeddings to parquet",
}
COMMANDS = {
    "evaluate": "measure frozen features of checkpoints: nearest neighbours, linear probes, zero-shot accuracy",
    "search": "find pictures for a text, texts for a picture, or pictures like a picture",
    "export": "write a checkpoint for transformers, timm or onnxruntime, checked there, with a model card",
    "compare": "put runs side by side: comparable figures, settings that differ, where they come from, cost",
    "report": "write the page of a run: figures, curves, lineage, pictures, settings, what to do next",
    "register": "put a model into MLflow's registry, to be served: labels, numbers or embeddings",
    "why": "make a step of a run again: its batch as it was shown, each sample's loss and gradient",
    "ui": "open MLflow's pages on the runs",
    "sync": "send what runs have logged and the tracking store has not taken",
    "prepare": "build the caches that a training needs, before it",
    "plan": "probe a training for a minute: its time, memory and disk, and whether it can be done",
    "doctor": "check this machine: versions, devices, directories, database, a second of training",
    "benchmark": "measure training speed beside peers, or beside another build",
    "study": "many trainings as one result: label efficiency of encoders, scaling of width, depth and data",
    "sweep": "search for the best settings of a training: Optuna proposes, validation figures choose",
    "samples": "make the bundled samples again from their sources",
}

# Seconds in which all processes of a training find the same mistake.
SAYING_SECONDS = 2.0
# What torch says of a loader's worker that a signal has ended, wherever in the step it hears of it.
LOST_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\) (is killed by signal: \w+|exited unexpectedly)")

FIT_HELP = """usage: python -m lit_pretrain {command} --config FILE [--config FILE] [--KEY VALUE ...]
         [--ckpt_path last|RUN|FILE]

{help}

  --config FILE       settings in YAML; later files and keys win over earlier ones (see configs/)
  --trainer.KEY       Lightning's Trainer: max_steps, devices, strategy, precision (auto), val_check_interval, ...
  --model.KEY         the model: encoder, objectives, optimizer, schedule, compile_blocks, ...
  --data.KEY          the data: path, data_files, text_column, sequence_length, batch_size, ...
  --seed_everything N seed of every draw (0)
  --ckpt_path C       a checkpoint to {checkpoint}: last, a run's name or id, or a path
  --print_config      print the whole resolved config, to start one of your own
  --help full         every key with its description

  python -m lit_pretrain {command} --model.help TextPretraining    the keys of one class
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: As after `python -m lit_pretrain`; null takes the process's.

    Returns:
        Exit status: 0 done, 2 the person's input was wrong (one sentence on stderr), 1 anything else.
    """
    if arguments is None and "_ARGCOMPLETE" in os.environ:
        return complete()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A terminal or a pipe that is not in UTF-8 shows question marks, where Python would stop.
            stream.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"lit_pretrain {__version__}")
        return 0
    try:
        return dispatch(arguments[0], arguments[1:])
    except UserError as error:
        sentence = with_notes(error, without_credentials(" ".join(str(error).split())))
        if not is_said(sentence):
            print(f"lit_pretrain: {sentence}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has closed it (`... | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("lit_pretrain: interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        return failed(error)


def complete() -> int:
    """Answer a shell that completes what is being typed, and end the process; 1 where argcomplete is not installed."""

    def add_arguments(command: str, parser: argparse.ArgumentParser) -> None:
        importlib.import_module(f"lit_pretrain.commands.{command}").add_arguments(parser)

    if importlib.util.find_spec("argcomplete") is None:
        return 1
    from lit_pretrain.cli.completion import complete as complete_line

    complete_line(TRAINING | COMMANDS, TRAINING, add_arguments)
    return 0


def script() -> int:
    """As `main`, for the installed script: classes of a person's own are found where it is given, as by `python -m`."""
    sys.path.insert(0, os.getcwd())
    return main()


def dispatch(command: str, arguments: list[str]) -> int:
    """Run one command by its name."""
    if command in TRAINING:
        if arguments in (["--help"], ["-h"]):
            purpose = "go on from" if command == "fit" else "load"
            print(FIT_HELP.format(command=command, help=TRAINING[command], checkpoint=purpose))
            return 0
        full = arguments in (["--help", "full"], ["--help=full"])
        lightning_cli = import_for_good("lit_pretrain.cli.lightning_cli")
        return lightning_cli.run([command, *(["--help"] if full else arguments)])
    if command not in COMMANDS:
        raise UserError(
            f"There is no command '{command}'{nearest(command, [*TRAINING, *COMMANDS])}: see python -m lit_pretrain "
            "--help."
        )
    module = import_for_good(f"lit_pretrain.commands.{command}")
    description = f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}."
    parser = ArgumentParser(prog=f"python -m lit_pretrain {command}", description=description)
    module.add_arguments(parser)
    if hasattr(module, "TRAINING_ARGUMENTS"):
        # What it does not know itself is as for fit.
        parsed, training = parser.parse_known_args(arguments)
        setattr(parsed, module.TRAINING_ARGUMENTS, training)
        return module.run(parsed)
    return module.run(parser.parse_args(arguments))


def overview() -> str:
    """The help of the whole."""
    lines = [
        "usage: python -m lit_pretrain COMMAND [ARGUMENTS]",
        "",
        "Pretrain Transformers on text and pictures, compare the runs, and use what came out.",
        "",
    ]
    for commands in (TRAINING, COMMANDS):
        lines += [f"  {name:<12}{text}" for name, text in commands.items()] + [""]
    lines += [
        "Start:  python -m lit_pretrain fit --config configs/quickstart.yaml",
        "Then:   python -m lit_pretrain ui",
    ]
    return "\n".join(lines)


def failed(error: Exception) -> int:
    """Say in one sentence what broke; the traceback follows for whoever mends it, unless the sentence is enough."""
    from lit_pretrain.modules.base import NonFiniteLossError

    message = without_credentials(" ".join(str(error).split())) or "no message"
    if isinstance(error, NonFiniteLossError):
        sentence = message[:600]
    elif (lost := LOST_WORKER.search(message)) is not None:
        sentence = (
            f"A process that reads data has died ({lost[0]}), as the system kills one where memory runs short: lower "
            "data.workers or data.batch_size, or give the job more memory (of shared memory, in a container)."
        )
    else:
        print(without_credentials("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        sentence = f"{own_place(error)}{type(error).__name__}: {message[:600]}"
    print(f"lit_pretrain: {with_notes(error, sentence)}", file=sys.stderr)
    return 1


def is_said(sentence: str) -> bool:
    """Whether another process of this training has said the same: most of them find what a person got wrong."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    key = f"lit_pretrain/said/{hashlib.sha256(sentence.encode()).hexdigest()}"
    try:
        store = distributed.distributed_c10d._get_default_store()
        said = store.add(key, 1) > 1
        # The first process has what the others ask.
        deadline = time.monotonic() + SAYING_SECONDS
        while distributed.get_rank() == 0 and store.add(key, 0) < distributed.get_world_size():
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    except Exception:  # it is gone, and twice is better than never
        return False
    return said


def with_notes(error: Exception, message: str) -> str:
    """What is said of an error, with the sentences that were added to it on its way, such as how to go on."""
    notes = [without_credentials(str(note)) for note in getattr(error, "__notes__", ())]
    return " ".join([f"{message.rstrip('.')}." if notes else message, *notes])


def own_place(error: Exception) -> str:
    """Where in a person's own files an error came up, as "my_text.py, line 30, in compute: "; else nothing."""
    # Python, the environment and the suite itself.
    installed = (os.path.join(sys.base_prefix, ""), os.path.join(sys.prefix, ""), os.path.dirname(__file__) + os.sep)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename
        if not os.path.isfile(file) or file.startswith(installed) or "site-packages" in file:
            continue
        here = os.path.join(os.getcwd(), "")
        return f"{file.removeprefix(here)}, line {frame.lineno}, in {frame.name}: "
    return ""


if __name__ == "__main__":
    sys.exit(main())
