#!/usr/bin/env bash
# jsonargparse 4.47.0: a classmethod annotated `-> Self` cannot be a class_path, one annotated with the class can.
#
# Where: an argument whose type is a class, given as "module.Class.method" (a classmethod that makes an instance, such as
#   from_pretrained), in a config or on the command line.
# Behaviour: the return annotation decides whether the method fits. typing.Self (Python 3.11), which type checkers advise
#   for such methods, is not resolved to the class: "Import path ... does not correspond to a subclass of Model".
# Seen (2026-11-28, Linux x86_64, Python 3.11):
#   -> "Model": an instance
#   -> Self:    ArgumentError, does not correspond to a subclass of Model
# Way round: name the class in the annotation.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jsonargparse[signatures]==4.47.0
cat > "$work/check.py" <<'PYTHON'
from pathlib import Path

Path("models.py").write_text(
    """
from typing import Self


class Model:
    def __init__(self, width: int = 1):
        self.width = width

    @classmethod
    def named(cls, width: int = 2) -> "Model":
        return cls(width)

    @classmethod
    def by_self(cls, width: int = 2) -> Self:
        return cls(width)
"""
)
import jsonargparse  # noqa: E402
import models  # noqa: E402

parser = jsonargparse.ArgumentParser(exit_on_error=False)
parser.add_argument("--model", type=models.Model)
assert parser.instantiate_classes(parser.parse_args(["--model=models.Model.named"])).model.width == 2
print('-> "Model": an instance')
try:
    parser.parse_args(["--model=models.Model.by_self"])
except Exception as error:
    print(f"-> Self:    {type(error).__name__}: {' '.join(str(error).split())}")
    raise SystemExit(0 if "does not correspond to a subclass" in str(error) else 1)
raise SystemExit(1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
