"""The pages are true: links, commands, settings, names and examples are read by what really reads them."""

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import os
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from guide_objectives import guide_modules
from lightning.pytorch.cli import LightningCLI
from pages import ROOT, Command, Page, commands_of, read_header, read_page

from lit_pretrain.__main__ import COMMANDS, TRAINING, main
from lit_pretrain.argument_parser import ArgumentParser
from lit_pretrain.cli.class_parsers import made_once
from lit_pretrain.cli.lightning_cli import CommandLine
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import Objective

MOST_LINES = 250
NAMES = {*TRAINING, *COMMANDS}
MARKDOWN = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "findings" / "README.md"]
MARKDOWN += [ROOT / "lit_pretrain" / "samples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What stands for a person's own config, or for that of the run whose checkpoint is named; the first that fits.
STAND_INS = ("finetune/own_text", "contrastive/quickstart", "quickstart", "vision/quickstart", "contrastive/replay")
STAND_INS = tuple(f"configs/{name}.yaml" for name in STAND_INS)
# What a command needs beside the options that a line names.
NEEDED = {"evaluate": ["RUN"], "search": ["--ckpt", "RUN"], "export": ["--ckpt", "RUN", "--to", "DIR"]}
PATH = re.compile(r"(?:configs|docs|findings|lit_pretrain|tests)/[\w.*{},/-]*[\w*}/]")
SECTIONS = {"seed_everything", "trainer", "model", "data", "ckpt_path"}


class Parsed(BaseException):
    """Carries the parser out of the command line, before anything is made."""


@pytest.fixture(scope="module")
def parser():
    """The parser of fit, validate, test and predict as the command line has it."""

    def stop(self, parser, args):
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(CommandLine, "parse_arguments", stop)
        # A command makes its own parser only.
        patch.setattr(CommandLine, "subcommands", staticmethod(LightningCLI.subcommands))
        # An objective of a person's own.
        own = ModuleType("my_package")
        own.MyObjective = type("MyObjective", (Objective,), {"__module__": "my_package", "__doc__": "A person's own."})
        patch.setitem(sys.modules, "my_package", own)
        for name, code in guide_modules().items():
            patch.setitem(sys.modules, name, module := ModuleType(name))
            exec(compile(code, f"{name}.py", "exec"), vars(module))
        with pytest.raises(Parsed) as stopped:
            main(["fit", "--config", "configs/quickstart.yaml"])
        with made_once():
            yield stopped.value.args[0]


def pages() -> list[Page]:
    found = [read_page(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) for path in MARKDOWN]
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    return [*found, *(read_header(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) for path in configs)]


PAGES = pages()


# -- what is checked; each gives sentences of what is wrong


def wrong_links(page: Page) -> list[str]:
    wrong = []
    for place, link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page.name).parent / path if path else ROOT / page.name
        if not target.exists() or ROOT not in target.resolve().parents:
            wrong.append(f"{place}: there is no {path}")
        elif anchor:
            anchors = page.anchors if not path else read_page(target.read_text(encoding="utf-8"), path).anchors
            if anchor not in anchors:
                wrong.append(f"{place}: {path or 'the page'} has no heading #{anchor}")
    return wrong


def wrong_names(page: Page) -> list[str]:
    """Files and objects of the repository that are named and are not there."""
    wrong = [
        f"{place}: there is no {path}"
        for place, text in [*page.spans, *page.prose, *((place, code) for place, _, code in page.code)]
        for path in PATH.findall(text)
        if not any(any(ROOT.glob(one.strip("/"))) for one in alternatives(path)) and "NAME" not in path
    ]
    for place, span in page.spans:
        if re.fullmatch(r"lit_pretrain(\.\w+)+", span.removesuffix("()")):
            try:
                pkgutil.resolve_name(span.removesuffix("()"))
            except (ImportError, AttributeError) as error:
                wrong.append(f"{place}: {error}")
    return wrong


def alternatives(path: str) -> list[str]:
    """a/{b,c}.yaml as a shell takes it."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    parts = [part if number % 2 else [",".join(part)] for number, part in enumerate(parts)]
    return ["".join(one) for one in itertools.product(*parts)]


def wrong_examples(page: Page) -> list[str]:
    """Blocks of Python that do not compile, or import, ask or call what is not there."""
    wrong = []
    for place, language, code in page.code:
        if language != "python":
            continue
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            wrong.append(f"{place}: {error}")
            continue
        known = {}
        for node in ast.walk(tree):
            try:
                known |= imported(node)
            except (ImportError, AttributeError) as error:
                wrong.append(f"{place}: {error}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and resolved(node.value, known) is not None:
                if resolved(node, known) is None:
                    wrong.append(f"{place}: {ast.unparse(node.value)} has no {node.attr}")
            elif isinstance(node, ast.Call) and callable(called := resolved(node.func, known)):
                accepted = parameters_of(called)
                if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
                    names = {keyword.arg for keyword in node.keywords} - {None, *accepted}
                    wrong += [f"{place}: {ast.unparse(node.func)} takes no {name}" for name in names]
    return wrong


def parameters_of(called: Callable) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(called).parameters)
    except ValueError:  # a function of C says nothing of its arguments
        return {"any": inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)}


def imported(node: ast.AST) -> dict:
    """What a statement imports, by the name that it gets."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: importlib.import_module(
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            for alias in node.names
            if not alias.name.startswith("my_") and importlib.import_module(alias.name)
        }
    if isinstance(node, ast.ImportFrom) and not node.module.startswith("my_"):
        return {
            alias.asname or alias.name: pkgutil.resolve_name(f"{node.module}:{alias.name}")
            if hasattr(importlib.import_module(node.module), alias.name)
            else importlib.import_module(f"{node.module}.{alias.name}")
            for alias in node.names
        }
    return {}


def resolved(node: ast.AST, known: dict) -> object | None:
    """The object that a name, or an attribute of one, stands for."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := resolved(node.value, known)) is not None:
        # Attributes of instances are not known; those of classes and modules are.
        return getattr(owner, node.attr, None)
    return None


def wrong_commands(commands: list[Command], parser) -> list[str]:
    """Commands that their own parser refuses."""
    wrong, training = [], []
    for command in commands:
        name = command.words[0] if command.words else ""
        if name in TRAINING:
            training.append(command)
        elif name in COMMANDS:
            sentence = refused(command)
            wrong += [f"{command.place}: {sentence}"] if sentence else []
            training += what_fit_reads(command)
        elif name and not (name.isupper() or name.startswith("-")):
            wrong.append(f"{command.place}: there is no command '{name}'")
    for command in commands:
        other = [path for path in command.configs if not re.match(r"configs/|my|own|[A-Z]", path)]
        wrong += [f"{command.place}: {path} is none of configs/, nor MY.yaml, my_own.yaml" for path in other]
    groups = defaultdict(list)
    for command in training:
        of_ours = [path for path in command.configs if path.startswith("configs/") and (ROOT / path).is_file()]
        first = of_ours[0] if of_ours and of_ours[0] == command.configs[0] else None
        # Help ends the parsing of whatever else is asked.
        asks = command if any(word.endswith("help") for word in command.words) else None
        groups[command.words[0], first, asks].append(command)
    for (name, first, _), group in groups.items():
        wrong += wrong_trainings(name, first, group, parser)
    return wrong


def refused(command: Command) -> str | None:
    """What a command that does not train says of its arguments; it is not run."""
    name, *words = command.words
    module = importlib.import_module(f"lit_pretrain.commands.{name}")
    words = [name, *(NEEDED.get(name, []) if command.partial else []), *words]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        patch.setattr(module, "run", lambda arguments: 0)
        try:
            status = main(words)
        except SystemExit as error:  # --help
            status = error.code
    if not status or (command.partial and "expected one argument" in said.getvalue()):
        return None
    return said.getvalue().strip()


def what_fit_reads(command: Command) -> list[Command]:
    """The settings of a command that are those of a training: of its data, or all that it passes on."""
    if "--gradients" in command.words:
        return [Command(command.place, ("fit", *command.words[command.words.index("--gradients") + 1 :]))]
    module = importlib.import_module(f"lit_pretrain.commands.{command.words[0]}")
    if hasattr(module, "TRAINING_ARGUMENTS"):
        own = ArgumentParser()
        module.add_arguments(own)
        with contextlib.suppress(UserError):  # else it is refused, which is told already
            training = own.parse_known_args(list(command.words[1:]))[1]
            return [Command(command.place, ("fit", *training))] if training else []
    words = iter(command.words)
    data = [[word] if "=" in word else [word, next(words, "")] for word in words if re.match(r"--data\b", word)]
    configs = [["--config", path] for path in command.configs if command.words[0] == "evaluate"]
    return [Command(command.place, ("fit", *itertools.chain(*configs, *data)))] if data else []


def wrong_trainings(name: str, first: str | None, group: list[Command], parser) -> list[str]:
    """Trainings of one config, which are parsed as one if they can: settings win over each other, but all are read."""
    together = parts_of(group)
    if not together[1] and len(together[0]) <= 1 and first is not None:
        return []  # tests/test_configs.py trains or builds every config
    said = parse([name, "--config", first or STAND_INS[0]], together, parser)
    if not said:
        return []
    if len(group) > 1:
        half = len(group) // 2
        return [one for part in (group[:half], group[half:]) for one in wrong_trainings(name, first, part, parser)]
    if group[0].partial and "expected one argument" in said:
        return []
    others = () if first else STAND_INS[1:]
    if any(not parse([name, "--config", path], together, parser) for path in others):
        return []
    return [f"{group[0].place}: {said}"]


def parts_of(group: list[Command]) -> tuple[list[str], list[str]]:
    """The configs and options of commands, each config once."""
    configs = dict.fromkeys(path for one in group for path in one.configs if path.startswith("configs/"))
    return list(configs), list(itertools.chain(*(one.options for one in group)))


def parse(start: list[str], parts: tuple[list[str], list[str]], parser) -> str | None:
    """What the parser says against a training; it is not run."""
    configs, options = parts
    words = [*start, *itertools.chain(*(["--config", path] for path in configs if path not in start)), *options]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parser.parse_args(words)
    except SystemExit as error:  # --model.help CLASS
        return said.getvalue() if error.code else None
    except (UserError, ValueError, TypeError, OSError) as error:
        return f"{' '.join(words)}: {' '.join(str(error).split())[:400]}"
    return None


def wrong_yaml(page: Page, parser, directory: Path) -> list[str]:
    """Blocks of YAML that are none, or hold settings that no module has."""
    wrong = []
    for place, language, code in page.code:
        if language not in ("", "yaml"):
            continue
        try:
            content = yaml.safe_load(code)
        except yaml.YAMLError as error:
            wrong += [f"{place}: {error}"] if language else []
            continue
        if isinstance(content, dict) and set(content) <= SECTIONS:
            (path := directory / "page.yaml").write_text(code)
            said = (parse(["fit", "--config", one], ([str(path)], []), parser) for one in STAND_INS)
            if (first := next(said)) and all(said):
                wrong.append(f"{place}: {first}")
    return wrong


# -- the tests


def test_there_are_pages_with_something_of_each_kind():
    commands = [command for page in PAGES for command in commands_of(page, NAMES)]
    assert len(PAGES) >= 60 and len(commands) >= 120
    assert {command.words[0] for command in commands if command.words} >= {"fit", "test", "predict", "evaluate"}
    assert sum(language == "python" for page in PAGES for _, language, _ in page.code) >= 4
    assert sum(len(page.links) for page in PAGES) >= 60


def check(wrong: Iterable[str]) -> None:
    if found := list(wrong):
        pytest.fail("\n".join(["", *found]), pytrace=False)


def test_links_lead_somewhere():
    check(itertools.chain(*map(wrong_links, PAGES)))


def test_every_page_is_reached_from_the_readme():
    by_name, reached, ahead = {page.name: page for page in PAGES}, set(), ["README.md"]
    while ahead:
        if (name := ahead.pop()) in by_name and name not in reached:
            reached.add(name)
            targets = (ROOT / Path(name).parent / link.partition("#")[0] for _, link in by_name[name].links)
            ahead += [os.path.relpath(target, ROOT) for target in targets]
    check(page.name for page in PAGES if page.name.endswith(".md") and page.name not in reached)


def test_files_and_objects_that_are_named_exist():
    check(itertools.chain(*map(wrong_names, PAGES)))


def test_python_examples_compile_and_what_they_import_exists():
    check(itertools.chain(*map(wrong_examples, PAGES)))


def test_commands_are_taken_by_their_parsers(parser, tmp_path):
    commands = list(dict.fromkeys(command for page in PAGES for command in commands_of(page, NAMES)))
    check([*wrong_commands(commands, parser), *(one for page in PAGES for one in wrong_yaml(page, parser, tmp_path))])


def test_no_command_stands_outside_of_code():
    """Where a block is indented below a list, it is none."""
    markdown = PAGES[: len(MARKDOWN)]
    check(place for page in markdown for place, text in page.prose if "python -m lit_pretrain" in text)


def test_pages_are_short():
    check(f"{page.name} has {page.lines} lines, not {MOST_LINES}" for page in PAGES if page.lines > MOST_LINES)


STALE = {
    "link": ("[a](docs/gone.md)", "there is no docs/gone.md"),
    "anchor": ("[a](LICENSE) [b](#nowhere)\n\n# There", "no heading #nowhere"),
    "config": ("    python -m lit_pretrain fit --config configs/gone.yaml", "there is no configs/gone.yaml"),
    "setting": ("    python -m lit_pretrain fit --config configs/quickstart.yaml --model.objektive 1", "objektive"),
    "value": ("`python -m lit_pretrain fit --config FILE --data.batch_size many`", "batch_size"),
    "run": ("    python -m lit_pretrain test --ckpt_path RUN --data.pathh a.csv", "pathh"),
    "option": ("    python -m lit_pretrain export --ckpt RUN --to DIR [--formatt hf|onnx]", "--formatt"),
    "data": ("    python -m lit_pretrain evaluate RUN --data.labels label", "labels"),
    "span": ("`search --ckpt RUN --qeury a`", "qeury"),
    "command": ("    python -m lit_pretrain train --config FILE", "no command 'train'"),
    "import": ("```python\nfrom lit_pretrain.modules import TextPretrainer\n```", "TextPretrainer"),
    "method": ("```python\nfrom lit_pretrain.modules import FineTuning\nFineTuning.load('a')\n```", "has no load"),
    "argument": ("```python\nfrom lit_pretrain.modules import FineTuning\nFineTuning(lr=1)\n```", "takes no lr"),
    "syntax": ("```python\nfor\n```", "invalid syntax"),
    "object": ("`lit_pretrain.objectives.gone`", "gone"),
    "file": ("see `lit_pretrain/gone.py`", "there is no lit_pretrain/gone.py"),
    "yaml": ("```yaml\ntrainer: {max_stepps: 3}\n```", "max_stepps"),
}


@pytest.mark.parametrize("kind", STALE)
def test_a_stale_page_is_found(kind, parser, tmp_path):
    text, sentence = STALE[kind]
    page = read_page(text + "\n", "README.md")
    wrong = [*wrong_links(page), *wrong_names(page), *wrong_examples(page), *wrong_yaml(page, parser, tmp_path)]
    wrong += wrong_commands(list(commands_of(page, NAMES)), parser)
    assert any(sentence in one for one in wrong), wrong
