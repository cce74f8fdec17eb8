#!/usr/bin/env bash
# torch 2.14.1: where there is no accelerator, torch.manual_seed writes down the call stack three times.
#
# Where: torch.manual_seed on a machine without GPUs, called often: to make each step's draws repeatable, say.
# Behaviour: the seed is also kept for CUDA, XPU and MTIA devices that might be initialised later, each time with
#   traceback.format_stack(), which reads and formats a line of source for every frame. Within a trainer's dozens of
#   frames that takes hundreds of times as long as seeding the processor's generator, and a tenth of a small step.
# Seen (2026-11-29, Linux x86_64, Python 3.11, CPU):
#   stacks written down: 3; same numbers: True; 327 times as long (40 frames deep)
# Way round: torch.default_generator.manual_seed(seed) where nothing is drawn on an accelerator: the same numbers.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import time
import traceback

import torch

if torch.accelerator.is_available():
    raise SystemExit("This is about machines without an accelerator.")
written = []
format_stack = traceback.format_stack


def counted(*arguments, **settings):
    written.append(1)
    return format_stack(*arguments, **settings)


traceback.format_stack = counted
torch.manual_seed(7)
traceback.format_stack = format_stack
expected = torch.rand(3)
torch.default_generator.manual_seed(7)
same = torch.equal(torch.rand(3), expected)


def seconds(seed, depth=40):
    if depth:
        return seconds(seed, depth - 1)
    began = time.perf_counter()
    for number in range(300):
        seed(number)
    return time.perf_counter() - began


whole, alone = (min(seconds(seed) for _ in range(3)) for seed in (torch.manual_seed, torch.default_generator.manual_seed))
print(f"stacks written down: {len(written)}; same numbers: {same}; {whole / alone:.0f} times as long")
raise SystemExit(0 if len(written) == 3 and same and whole > 50 * alone else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
