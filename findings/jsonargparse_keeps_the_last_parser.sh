#!/usr/bin/env bash
# jsonargparse 4.47.0: the parser that parsed last is never freed, nor is what hangs on it.
#
# Where: a function that makes a parser with a class among its arguments (add_subclass_arguments, or Lightning's
#   LightningCLI in subclass mode), parses, and returns; many calls in one process, as in a notebook or in tests.
# Behaviour: jsonargparse notes the parser in a ContextVar while it parses, and takes it out only when another parser is
#   noted. After the function has returned and a garbage collection, the parser lives on with all that it refers to; it
#   goes with the next parser that parses. LightningCLI hangs the model, the trainer and the optimiser on objects that the
#   parser refers to, so that the memory of a whole training stays until the next one has been set up beside it.
# Seen (2026-11-28, Linux x86_64, Python 3.11), "big" being an attribute of the parser:
#   after the first call: big of the first is alive
#   after the second call: big of the first is gone, of the second alive
#   called in a copy of the context: big is gone
# Way round: contextvars.copy_context().run(function), whose notes are dropped with the copy.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jsonargparse[signatures]==4.47.0
cat > "$work/check.py" <<'PYTHON'
import contextvars
import gc
import weakref

import jsonargparse


class Optimizer:
    def __init__(self, rate: float = 0.1):
        self.rate = rate


class Big:
    """What an application hangs on its parser."""


class Parser(jsonargparse.ArgumentParser):
    """A parser that may have attributes."""


def command():
    parser = Parser()
    parser.big = Big()
    parser.add_subclass_arguments(Optimizer, "optimizer")
    parser.parse_args(["--optimizer=Optimizer", "--optimizer.rate=0.2"])
    return weakref.ref(parser.big)


def state(reference):
    gc.collect()
    return "gone" if reference() is None else "alive"


first = command()
seen = [state(first)]
print("after the first call: big of the first is", seen[0])
second = command()
seen += [state(first), state(second)]
print(f"after the second call: big of the first is {seen[1]}, of the second {seen[2]}")
seen.append(state(contextvars.copy_context().run(command)))
print("called in a copy of the context: big is", seen[3])
raise SystemExit(0 if seen == ["alive", "gone", "alive", "gone"] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
