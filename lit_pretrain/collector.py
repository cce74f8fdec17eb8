"""Python's collector of garbage, paused while there is none to find.

An import makes hundreds of thousands of objects, and all of them stay. Whenever enough are new, Python looks through
them for cycles that nobody needs any more, in vain (docs/results/speed.md).
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
