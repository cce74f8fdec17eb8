"""Memory that is freed is there again without the system's help."""

import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from lit_pretrain.memory import keep_memory
def step():
    torch.ones(16_000_000).add_(1)  # 64 MB
def faults():
    for _ in range(12):  # until the heap has found its shape
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default = faults()
assert keep_memory()
print(default, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's allocator is told to keep memory")
def test_a_step_takes_the_memory_of_the_one_before():
    answer = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    default, kept = map(int, answer.stdout.split())
    # 64 MB are 15,625 pages, fetched anew at each of ten steps unless they are kept. A small block that comes to lie at
    # the heap's end can still move the large one, once.
    assert default >= 150_000 and kept <= 2 * 15_700
