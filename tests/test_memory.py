"""Memory that is freed is there again without the system's help."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from lit_pretrain.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def step():
    torch.ones(16_000_000).add_(1)  # 64 MB
for _ in range(12):  # until the heap has found its shape
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's allocator is told to keep memory")
def test_a_step_takes_the_memory_of_the_one_before():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "default")
    }
    # 64 MB are 15,625 pages, fetched anew at each of ten steps unless they are kept. A small block that comes to lie at
    # the heap's end can still move the large one, once.
    assert faults["default"] >= 150_000 and faults["keep"] <= 2 * 15_700
