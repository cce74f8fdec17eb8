"""Every draw as a function of named numbers, so that nothing depends on what was drawn before.

Order is drawn from (seed, epoch), a sample from (seed, epoch, index), a step on the device from (seed, step, rank). A
resumed training then sees exactly what the uninterrupted one would have seen, and any batch can be made again.
"""

import hashlib
import os

import numpy


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits from its parts, the same on every platform and in every version of Python.

    Args:
        parts: Integers and strings, in order; ("a", 1) and ("a1",) differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def sample_generator(*parts: int | str) -> numpy.random.Generator:
    """A generator of its own for the parts."""
    return numpy.random.Generator(numpy.random.Philox(derive_seed(*parts)))


def default_seed() -> int:
    """The seed given to seed_everything, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
