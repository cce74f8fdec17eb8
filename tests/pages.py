"""Pages read as Markdown: their links, headings, commands and examples, each with its place."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
# What ends a command in a shell.
SEPARATORS = set("();<>|&")
# [--format hf|timm] and [RUN ...] are said in a synopsis; [title,captions] is a value.
OPTIONAL = re.compile(r"\[((?:--|[A-Z])[^\[\]]*)\]")
ALTERNATIVES = re.compile(r"(?<![\w|-])([\w-]+)(?:\|[\w-]+)+")


@dataclass
class Page:
    """A page of Markdown, or the header of a config."""

    name: str
    links: list[tuple[str, str]] = field(default_factory=list)  # each with the place first
    anchors: set[str] = field(default_factory=set)
    code: list[tuple[str, str, str]] = field(default_factory=list)  # place, language, text of blocks
    spans: list[tuple[str, str]] = field(default_factory=list)  # code within a line
    prose: list[tuple[str, str]] = field(default_factory=list)
    lines: int = 0


def read_page(text: str, name: str) -> Page:
    """A page of Markdown, as GitHub understands it."""
    page, heading = Page(name, lines=len(text.splitlines())), False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        place = f"{name}:{token.map[0] + 1}" if token.map else name
        if token.type == "fence" or token.type == "code_block":
            page.code.append((place, token.info.strip(), token.content))
        if token.type == "heading_open":
            heading = True
        for child in token.children or []:
            if child.type in ("link_open", "image"):
                page.links.append((place, str(child.attrGet("href") or child.attrGet("src"))))
            elif child.type == "code_inline":
                page.spans.append((place, child.content))
            elif child.type == "text":
                page.prose.append((place, child.content))
        if heading and token.type == "inline":
            page.anchors.add(anchor_of(token.children, page.anchors))
            heading = False
    return page


def anchor_of(children: list, taken: set[str]) -> str:
    """The anchor that GitHub gives a heading."""
    words = "".join(child.content for child in children if child.type in ("text", "code_inline"))
    anchor = stem = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
    number = 0
    while anchor in taken:
        number += 1
        anchor = f"{stem}-{number}"
    return anchor


def read_header(text: str, name: str) -> Page:
    """The comment at the head of a config: what is indented there is code."""
    head = re.match(r"(?:#.*\n)*", text)[0]
    lines = [line[1:] for line in head.splitlines()]
    page = Page(name, prose=[(name, "\n".join(lines))])
    for number, line in enumerate(lines, 1):
        if line.startswith("   ") or "python -m lit_pretrain" in line:
            start = re.search(r"python -m lit_pretrain|\S|$", line).start()
            if number > 1 and page.code and page.code[-1][2].endswith("\\\n"):
                place, language, before = page.code.pop()
                page.code.append((place, language, f"{before}{line}\n"))
            else:
                page.code.append((f"{name}:{number}", "", f"{line[start:]}\n"))
    return page


@dataclass(frozen=True)
class Command:
    """What follows `python -m lit_pretrain`, by words."""

    place: str
    words: tuple[str, ...]
    partial: bool = False  # named within a line, without all that the command needs

    @property
    def configs(self) -> list[str]:
        """Every file that --config names."""
        pairs = zip(self.words, self.words[1:], strict=False)
        return [value for word, value in pairs if word == "--config"]

    @property
    def options(self) -> list[str]:
        """All words but the subcommand, the configs, and what prints a config instead of using it."""
        kept, words = [], iter(self.words[1:])
        for word in words:
            if word == "--config":
                next(words, None)
            elif word != "--print_config":
                kept.append(word)
        return kept


def commands_of(page: Page, names: set[str]) -> Iterator[Command]:
    """Every command of a page, those in a block of code, and those within a line that have options.

    Args:
        page: The page.
        names: Of the commands, by which those within a line are known.
    """
    fit: tuple[str, ...] | None = None
    for place, _, code in page.code:
        for line in shell_lines(code):
            for words in commands_in(line):
                if words and words[0] == "fit":
                    fit = words
                yield Command(place, words)
            if line.startswith("--") and fit is not None:
                # Options by themselves are added to the command before them.
                yield Command(place, fit + written_out(line))
    for place, span in page.spans:
        yield from (Command(place, words) for words in commands_in(span))
        if span.partition(" ")[0] in names and " --" in span:
            yield Command(place, written_out(span), partial=True)


def shell_lines(code: str) -> Iterator[str]:
    """The lines of a block of code as a shell takes them: after a backslash and within quotes they go on."""
    line = ""
    for part in code.replace("\\\n", " ").splitlines():
        line = f"{line} {part}".strip()
        try:
            shlex.split(line, comments=True)
        except ValueError:
            continue
        yield line
        line = ""


def commands_in(line: str) -> Iterator[tuple[str, ...]]:
    """The words after each `-m lit_pretrain` or `lit-pretrain` of a line."""
    for found in re.finditer(r"(?:-m lit_pretrain|(?:^|[\s/])lit-pretrain)(?=\s|$)", line):
        yield written_out(line[found.end() :])


def written_out(line: str) -> tuple[str, ...]:
    """The words of one command, a synopsis by its first alternatives, without what only stands for more."""
    line = ALTERNATIVES.sub(r"\1", OPTIONAL.sub(r"\1", line))
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in lexer:
        if word and set(word) <= SEPARATORS:
            break
        before = words[-1] if words else ""
        if re.fullmatch(r"--(\w+\.)*(KEY|key)", before) or (before.endswith(".help") and word.isupper()):
            words.pop()
        elif word != "..." or (before.startswith("--") and "=" not in before):
            words.append(word)
    return tuple(words)
