#!/usr/bin/env bash
# datasets 5.2.0: whether csv files can be read together depends on the order in which they are named.
#
# Where: load_dataset("csv", data_files=[...]) with a column that has whole numbers only in one file and fractions in another
#   (a score of a shard where all happen to be 1 and 2).
# Behaviour: the first file decides the column's type. Fractions first: the whole numbers are read as 1.0 and 2.0. Whole
#   numbers first: "An error occurred while generating the dataset", with "Float value 1.500000 was truncated converting to
#   int64" as its cause. With a glob the order is that of the names, so shard 0 decides for all.
# Seen (2026-11-28, Linux x86_64, Python 3.11):
#   fractions first:     [1.5, 1.0, 2.0]
#   whole numbers first: DatasetGenerationError
# Way round: name the types, load_dataset(..., features=Features({"score": Value("float64"), ...})).
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0
cat > "$work/check.py" <<'PYTHON'
from pathlib import Path

import datasets

datasets.disable_progress_bars()
Path("whole.csv").write_text("score,text\n1,a\n2,b\n")
Path("fractions.csv").write_text("score,text\n1.5,c\n")


def read(*files):
    return datasets.load_dataset("csv", data_files=list(files), split="train", cache_dir=f"cache-{files[0]}")["score"][:]


scores = read("fractions.csv", "whole.csv")
print("fractions first:    ", scores)
assert scores == [1.5, 1.0, 2.0]
try:
    print("whole numbers first:", read("whole.csv", "fractions.csv"))
except datasets.exceptions.DatasetGenerationError as error:
    print("whole numbers first:", type(error).__name__, "from:", error.__cause__)
    raise SystemExit(0)
raise SystemExit(1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
