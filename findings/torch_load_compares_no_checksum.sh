#!/usr/bin/env bash
# torch 2.14.1: a checkpoint in which a bit has turned on the disk loads without a word, although it has checksums.
#
# Where: torch.save and torch.load of the archive format, with weights_only=True, with and without mmap.
# Behaviour: torch.save writes a zip archive with a CRC-32 of every tensor's bytes. torch.load does not compare it: a
#   changed weight comes back as if it had been saved so, where Python's zipfile names the damaged part. A file that was
#   cut short is refused.
# Seen (2026-11-29, Linux x86_64, Python 3.11, CPU), the third byte of the first of four ones changed by one:
#   torch.load: 1.0078125, with mmap: 1.0078125; zipfile: w/data/0
# Way round: zipfile.ZipFile(path).testzip() before the load.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import zipfile
from pathlib import Path

import torch

path = Path("w.pt")
torch.save({"weight": torch.ones(4)}, path)
content = bytearray(path.read_bytes())
content[content.index(torch.ones(4).numpy().tobytes()) + 2] ^= 1
path.write_bytes(content)
values = [torch.load(path, weights_only=True, mmap=mmap)["weight"][0].item() for mmap in (False, True)]
damaged = zipfile.ZipFile(path).testzip()
print(f"torch.load: {values[0]}, with mmap: {values[1]}; zipfile: {damaged}")
raise SystemExit(0 if values == [1.0078125, 1.0078125] and damaged == "w/data/0" else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
