"""Python's collector of garbage, paused while there is none to find.

An import makes hundreds of thousands of objects, and all of them stay. Whenever enough are new, Python looks through
them for cycles that nobody needs any more, in vain (docs/results/speed.md).
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def paused_collector() -> Iterator[None]:
    """Within it nothing is looked for; what is short and leaves little behind, such as imports, belongs there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def import_for_good(name: str) -> ModuleType:
    """Import a module with all that it brings, none of which is looked through again afterwards.

    That is for what a process begins with: what is garbage by then would never be found.
    """
    if name in sys.modules:
        return sys.modules[name]
    with paused_collector():
        module = importlib.import_module(name)
        gc.freeze()
    return module
