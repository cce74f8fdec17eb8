#!/usr/bin/env bash
# torch 2.14.1 (the wheel of PyPI for Linux, built for CUDA), on a machine without a GPU: the largest resident memory of
# a small process is reached after its last line, as it ends.
#
# Where: memory of a training on CPUs as others measure it when it has ended (wait4's ru_maxrss, /usr/bin/time, the
#   accounting of a batch system) beside what the process itself says in its last line (getrusage, VmHWM).
# Behaviour: while the interpreter ends, destructors of the CUDA libraries that `import torch` has mapped run through
#   their code (libcusparseLt's and libtorch_cuda's above all) and page it in. A process that does nothing but import torch
#   comes to a quarter more than it ever held before. By os._exit it does not. The pages are clean and the system can
#   take them back, so it is no memory that a training needs; a comparison of the two measurements is off by it.
# Seen (2026-11-29, Linux x86_64, Python 3.11):
#   in its last line 508 MiB, when it has ended 632 MiB; by os._exit 508 and 508 MiB
# Way round: measure in the process, before it ends.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import os
import subprocess
import sys

LAST_LINE = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], flush=True)"


def mebibytes(end):
    """The peak that a process tells in its last line, and the one that its parent is told of."""
    command = [sys.executable, "-W", "ignore", "-c", f"import os, torch\n{LAST_LINE}\n{end}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    own = int(process.stdout.read()) // 1024
    _, _, usage = os.wait4(process.pid, 0)
    return own, usage.ru_maxrss // 1024


(before, after), (exit_before, exit_after) = mebibytes("pass"), mebibytes("os._exit(0)")
print(f"in its last line {before} MiB, when it has ended {after} MiB; by os._exit {exit_before} and {exit_after} MiB")
raise SystemExit(0 if after > before + 50 and exit_after < exit_before + 10 else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
