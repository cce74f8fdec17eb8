#!/usr/bin/env bash
# torchmetrics 1.9.0: two states that were added with one default tensor are one tensor, until the first reset.
#
# Where: Metric.add_state("a", zero) and add_state("b", zero) with the same tensor, updates in place (`self.a += x`).
# Behaviour: the default is copied for later resets, but the state itself is the tensor that was handed over, so both states
#   are the same memory: what is added to one is in the other. `reset` sets each to a copy of its own, so the figures are
#   wrong in the first epoch only, and a test that resets before it computes does not see it.
# Seen (2026-11-28, Linux x86_64, Python 3.11), the mean of a single 6.0:
#   before a reset: 1.0
#   after a reset:  6.0
# Way round: a fresh tensor for every call of add_state.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import torch
import torchmetrics


class Mean(torchmetrics.Metric):
    def __init__(self):
        super().__init__()
        zero = torch.zeros(())
        self.add_state("total", zero, dist_reduce_fx="sum")
        self.add_state("count", zero, dist_reduce_fx="sum")

    def update(self, value):
        self.total += value
        self.count += 1

    def compute(self):
        return self.total / self.count


metric, means = Mean(), []
for _ in range(2):
    metric.update(torch.tensor(6.0))
    means.append(float(metric.compute()))
    metric.reset()
print("before a reset:", means[0])
print("after a reset: ", means[1])
raise SystemExit(0 if means == [1.0, 6.0] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
