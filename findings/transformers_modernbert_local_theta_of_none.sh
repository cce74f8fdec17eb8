#!/usr/bin/env bash
# transformers 5.24.0: a ModernBERT whose local layers share the global rotation's base can no longer be built.
#
# Where: ModernBertConfig(global_rope_theta=..., local_rope_theta=None).
# Behaviour: in 4.57.3 null means that local layers take the global base. In 5.24.0 it becomes the base itself, so that the
#   config is made without a word and ModernBertModel(config) raises a TypeError about None and a power.
# Seen (2026-11-29, Linux x86_64, Python 3.11; the second frequency of each layer, 160,000 ** (-2 / 16) of the global base):
#   4.57.3 built: 0.2236, 0.2236, 0.2236, 0.2236
#   5.24.0 TypeError: unsupported operand type(s) for ** or pow(): 'NoneType' and 'Tensor'
# Way round: give the number, local_rope_theta=global_rope_theta.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cat > "$work/check.py" <<'PYTHON'
import sys

import transformers
from transformers import ModernBertConfig, ModernBertModel

shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 99}
special = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
config = ModernBertConfig(**shape, **special, global_rope_theta=160000.0, local_rope_theta=None)
try:
    model = ModernBertModel(config)
    found = "built: " + ", ".join(
        f"{layer.attn.rotary_emb.inv_freq[1]:.4f}" for layer in model.layers if hasattr(layer.attn, "rotary_emb")
    )
except TypeError as error:
    found = f"TypeError: {error}"
print(transformers.__version__, found)
wanted = "TypeError" if sys.argv[1] == "refused" else "built: 0.2236, 0.2236, 0.2236, 0.2236"
raise SystemExit(0 if found.startswith(wanted) else 1)
PYTHON
for pair in 4.57.3:built 5.24.0:refused; do
    python3 -m venv "$work/${pair%:*}"
    "$work/${pair%:*}/bin/pip" install --quiet torch==2.14.1 "transformers==${pair%:*}"
    "$work/${pair%:*}/bin/python" -W ignore "$work/check.py" "${pair#*:}" || { echo "The behaviour has changed."; exit 1; }
done
