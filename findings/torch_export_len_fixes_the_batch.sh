#!/usr/bin/env bash
# torch 2.14.1: `len(x)` in a model fixes its batch size when it is exported, `x.shape[0]` does not.
#
# Where: torch.export.export(model, ..., dynamic_shapes={"x": {0: Dim("batch")}}, strict=False), and so torch.onnx.export
#   with dynamo, which goes that way.
# Behaviour: Python wants an int of len(), so the symbolic size becomes the example's number, and the export fails with
#   "Constraints violated (batch)" though the model reads nothing but the size; the message does not name the line. With
#   `x.shape[0]` the same model is exported for every batch.
# Seen (2026-11-28, Linux x86_64, Python 3.11):
#   x.reshape(x.shape[0], -1): exported, 5 rows in, 5 rows out
#   x.reshape(len(x), -1):     UserError: Constraints violated (batch)
# Way round: shape[0] in everything that may be exported.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5
cat > "$work/check.py" <<'PYTHON'
import torch


class ByShape(torch.nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], -1)


class ByLength(torch.nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1)


def export(model):
    sizes = {"x": {0: torch.export.Dim("batch")}}
    return torch.export.export(model, (torch.ones(3, 2, 2),), dynamic_shapes=sizes, strict=False).module()


assert export(ByShape())(torch.ones(5, 2, 2)).shape == (5, 4)
print("x.reshape(x.shape[0], -1): exported, 5 rows in, 5 rows out")
try:
    export(ByLength())
except Exception as error:
    print(f"x.reshape(len(x), -1):     {type(error).__name__}: {str(error).splitlines()[0]}")
    raise SystemExit(0 if "Constraints violated" in str(error) else 1)
raise SystemExit(1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
