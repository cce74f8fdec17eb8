"""Completes a command line in bash, zsh and fish, by argcomplete: commands, settings, their values, files and runs.

To know the settings of `fit` takes seconds, since Lightning and the suite's classes must be imported; they are written
down once for each state of the packages (`completion_settings`), so that only the first answer takes them.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lit_pretrain
from lit_pretrain.tracking.find import list_runs
from lit_pretrain.tracking.paths import write_atomically
from lit_pretrain.yaml_files import read_yaml

# A setting by its option: what it is, and the values that it can have, if those are few.
Settings = dict[str, tuple[str, list[str]]]

CONFIGS = ("yaml", "yml")
# Arguments of commands that are called as a run is.
RUNS = {"run_name", "run_names", "runs_given", "checkpoints", "ckpt", "ckpt_path", "subjects", "references"}


def complete(
    commands: dict[str, str], trainings: Iterable[str], add_arguments: Callable[[str, argparse.ArgumentParser], None]
) -> None:
    """Answer the shell, which has put what is typed so far into the environment, and end the process.

    Args:
        commands: What each does, by its name.
        trainings: Those whose arguments are settings.
        add_arguments: Adds the arguments of one of the others to a parser.
    """
    import argcomplete

    line, point = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT") or 0)
    words = line[:point].split(" ")
    given = next((word for word in words[:-1] if word in commands), None)
    parser = argparse.ArgumentParser(prog="lit_pretrain", add_help=False)
    below = parser.add_subparsers()
    for name, purpose in commands.items():
        sub = below.add_parser(name, help=escaped(purpose))
        if name != given:
            continue
        if name in trainings:
            add_settings(sub, words)
        else:
            add_arguments(name, sub)
            name_runs(sub)
    # Of hundreds of settings the sections are offered first.
    deep = [] if "." in words[-1] else [option for option in options_of(parser, given) if option.count(".") > 1]
    argcomplete.autocomplete(parser, always_complete_options="long", exclude=deep)


def escaped(text: str) -> str:
    """A line of help, in which argparse would look for fields."""
    return " ".join(text.split()).replace("%", "%%")


def options_of(parser: argparse.ArgumentParser, command: str | None) -> list[str]:
    """All options of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and command in action.choices:
            return list(action.choices[command]._option_string_actions)
    return []


def add_settings(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Give a training's parser its settings, those of the classes that its configs name.

    Args:
        parser: Of the command.
        words: Typed so far.
    """
    from argcomplete.completers import FilesCompleter

    def add(option: str, text: str, values: list[str] | None = None, completer: Any = None) -> None:
        if option not in parser._option_string_actions:
            action: Any = parser.add_argument(option, help=escaped(text))
            action.completer = completer or (lambda **_: values or [])

    add("--config", "settings in YAML", completer=FilesCompleter(CONFIGS))
    add("--ckpt_path", "a checkpoint: last, a run, or a file", completer=references)
    add("--seed_everything", "seed of every draw")
    add("--print_config", "print the whole resolved config")
    known = known_settings()
    classes = classes_named(words)
    for option, (text, values) in known.get("trainer", {}).items():
        add(option, text, values)
    for section in ("model", "data"):
        kinds = known.get(section, {})
        add(f"--{section}", f"the class of the {section}", sorted(kinds))
        chosen = [classes[section]] if classes.get(section) in kinds else list(kinds)
        for kind in chosen:
            for option, (text, values) in kinds[kind].items():
                add(option, text, values, references if option.endswith(".init_from") else None)


def references(prefix: str = "", **others: Any) -> list[str]:
    """What a run or a checkpoint can be called: last, the names of runs, files."""
    from argcomplete.completers import FilesCompleter

    with contextlib.suppress(Exception):  # a shell that completes shows no errors
        names = [record.run_name for record in list_runs()]
        return ["last", *dict.fromkeys(names), *FilesCompleter(("ckpt",))(prefix)]
    return ["last"]


def name_runs(parser: argparse.ArgumentParser) -> None:
    """Let a command's arguments that name runs be completed by those that are there."""
    actions: list[Any] = parser._actions
    for action in actions:
        if action.dest in RUNS and not action.choices:
            action.completer = references
        elif isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                name_runs(sub)


def classes_named(words: list[str]) -> dict[str, str]:
    """Short names of the model's and the data's class, as the configs on the command line and its options name them."""
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        option, _, value = word.partition("=")
        value = value or (words[place + 1] if place + 1 < len(words) else "")
        if option in ("--config", "-c"):
            with contextlib.suppress(Exception):  # what cannot be read names none
                content = read_yaml(os.path.expanduser(value), "config")
                named = {section: content[section]["class_path"] for section in ("model", "data") if section in content}
                found |= {section: str(path).rpartition(".")[2] for section, path in named.items()}
        elif option in ("--model", "--data") and value:
            found[option.removeprefix("--")] = value.rpartition(".")[2]
    return found


def known_settings() -> dict[str, Any]:
    """Settings of the trainer by option, and of the classes of model and data by their names; see the module."""
    path = settings_file()
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    with contextlib.suppress(Exception):  # a shell that completes shows no errors
        from lit_pretrain.cli.completion_settings import all_settings

        found = all_settings()
        with contextlib.suppress(OSError):
            for former in path.parent.glob("settings-*.json"):
                former.unlink(missing_ok=True)
            write_atomically(path, json.dumps(found))
        return found
    return {}


def settings_file() -> Path:
    """Where the settings of this state of the packages are written down."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lit_pretrain"
    root = Path(lit_pretrain.__file__).parent
    # Of a package that is being worked on, too.
    latest = max(file.stat().st_mtime_ns for file in root.rglob("*.py"))
    return place / f"settings-{lit_pretrain.__version__}-{importlib.metadata.version('lightning')}-{latest:x}.json"
