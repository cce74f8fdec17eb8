#!/usr/bin/env bash
# jsonargparse 4.47.0: a list of classes in a later config replaces the former one, but keeps its settings if it is as long.
#
# Where: an argument of type list[Base], given in two configs (or a config and the command line), the later one without
#   init_args.
# Behaviour: with another number of items the later list stands as written and has the classes' defaults. With the same
#   number each item keeps the init_args of the former item in its place, also where that is of another class which has an
#   argument of the same name. So leaving out one item of a fragment, or adding one, changes settings of the others, and a
#   task that took another one's place trains with its weight.
# Seen (2026-11-28, Linux x86_64, Python 3.11), after a config with First(weight=5) and Second():
#   [First]:         First(weight=1.0)
#   [First, Third]:  First(weight=5.0), Third(weight=1.0)
#   [Third, Second]: Third(weight=5.0), Second(weight=1.0)
# Way round: write all init_args of a list that is given again.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jsonargparse[signatures]==4.47.0
cat > "$work/check.py" <<'PYTHON'
from pathlib import Path

Path("tasks.py").write_text(
    """
class Task:
    def __init__(self, weight: float = 1.0):
        self.weight = weight


class First(Task):
    pass


class Second(Task):
    pass


class Third(Task):
    pass
"""
)
import jsonargparse  # noqa: E402
import tasks  # noqa: E402

parser = jsonargparse.ArgumentParser(exit_on_error=False)
parser.add_argument("--config", action="config")
parser.add_argument("--tasks", type=list[tasks.Task])
former = "tasks: [{class_path: tasks.First, init_args: {weight: 5.0}}, {class_path: tasks.Second}]"
Path("former.yaml").write_text(former)


def weights_after(*names):
    items = ", ".join(f"{{class_path: tasks.{name}}}" for name in names)
    Path("later.yaml").write_text(f"tasks: [{items}]")
    chosen = parser.parse_args(["--config", "former.yaml", "--config", "later.yaml"]).tasks
    assert [task.class_path for task in chosen] == [f"tasks.{name}" for name in names]
    weights = [task.init_args.weight for task in chosen]
    print(f"[{', '.join(names)}]:", ", ".join(f"{name}(weight={weight})" for name, weight in zip(names, weights)))
    return weights


seen = [weights_after("First"), weights_after("First", "Third"), weights_after("Third", "Second")]
raise SystemExit(0 if seen == [[1.0], [5.0, 1.0], [5.0, 1.0]] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
