#!/usr/bin/env bash
# transformers 5.24.0: a pair whose second text is empty is one text when it is tokenised alone, and a pair in a batch.
#
# Where: any tokenizer of the `tokenizers` library, here BertTokenizerFast; tokenizer(text, second) beside
#   tokenizer([text], [second]).
# Behaviour: alone, the empty string is taken for "no second text": [CLS] a [SEP]. In a batch, and by `tokenizers` itself,
#   it is a second text without words: [CLS] a [SEP] [SEP]. An empty first text is no such case. So a model that is served
#   one pair at a time answers otherwise than it was evaluated in batches (empty hypotheses, missing answers).
# Seen (2026-11-28, Linux x86_64, Python 3.11):
#   alone:    [CLS] a [SEP]
#   in batch: [CLS] a [SEP] [SEP]
# Way round: always hand over lists, of one pair too.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
cat > "$work/check.py" <<'PYTHON'
from pathlib import Path

from transformers import BertTokenizerFast

Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
tokenizer = BertTokenizerFast("vocab.txt")


def pieces(ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


alone = pieces(tokenizer("a", "")["input_ids"])
batch = pieces(tokenizer(["a"], [""])["input_ids"][0])
print("alone:   ", alone)
print("in batch:", batch)
assert pieces(tokenizer("a", "b")["input_ids"]) == pieces(tokenizer(["a"], ["b"])["input_ids"][0])
assert pieces(tokenizer("", "b")["input_ids"]) == "[CLS] [SEP] b [SEP]"
raise SystemExit(0 if (alone, batch) == ("[CLS] a [SEP]", "[CLS] a [SEP] [SEP]") else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
