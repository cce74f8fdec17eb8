"""The machine's own peak: how fast it multiplies large matrices, against which a training's speed is measured.

A maker's figure says little of a shared or throttled machine; a matrix product run now, with the settings of this very
process (threads, TF32, type of number), is what a training could reach at best.
"""

import functools
import time

import torch

SECONDS = 0.25


@functools.cache
def measured_peak(device_type: str, dtype: torch.dtype = torch.float32, seconds: float = SECONDS) -> float:
    """Measure the best rate of a square matrix product, once a process.

    Args:
        device_type: "cpu" or "cuda" (the current GPU).
        dtype: Type of both factors.
        seconds: About how long to measure.

    Returns:
        Floating-point operations a second (a multiplication and an addition count as two).
    """
    device = torch.device(device_type)
    # A generator of its own: the training's draws must not depend on whether somebody measures.
    generator = torch.Generator().manual_seed(0)
    size = 256 if device_type == "cpu" else 8192
    # Grow until a product takes long enough to time: number types that a processor only emulates stay small.
    while True:
        left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
        result = torch.empty_like(left)
        _product_seconds(left, right, result)
        spent = _product_seconds(left, right, result)
        if spent > seconds / 16 or size >= (2048 if device_type == "cpu" else 8192):
            break
        size *= 2
    repeats = max(3, min(200, int(seconds / max(spent, 1e-6))))
    best = min(_product_seconds(left, right, result) for _ in range(repeats))
    return 2.0 * size**3 / best


def _product_seconds(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> float:
    if left.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.mm(left, right, out=result)
    if left.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dtype_of_precision(precision: str) -> torch.dtype:
    """The type of number in which a trainer's precision ("bf16-mixed", "32-true", ...) multiplies matrices."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    if precision.startswith("16"):
        return torch.float16
    return torch.float64 if precision.startswith("64") else torch.float32
