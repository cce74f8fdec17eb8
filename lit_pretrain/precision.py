"""Which precision a training uses when nobody chose one.

bf16 multiplies matrices several times faster than fp32 on recent GPUs and on CPUs with AMX or AVX512-BF16; on other
CPUs PyTorch emulates it, ten to a hundred times slower than fp32. So it is asked for only where the hardware has it.

What stays in fp32 under mixed precision (logits, losses) may be multiplied in TF32 on a GPU: fp32's range with ten bits
of mantissa, three more than what it is made of has in bf16. A training that is said to be in fp32 is.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning.fabric.connector import _PRECISION_INPUT

# As torch.set_float32_matmul_precision takes them.
MatmulPrecision = Literal["highest", "high", "medium"]


def hardware_bf16() -> bool:
    """Whether the accelerator, or the CPU if there is none, multiplies bf16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_precision(precision: "_PRECISION_INPUT | Literal['auto']") -> "_PRECISION_INPUT":
    """`auto` as `bf16-mixed` where the hardware has bf16, else `32-true`; anything else as it is."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if hardware_bf16() else "32-true"


def resolve_matmul_precision(
    chosen: MatmulPrecision | Literal["auto"], precision: str | int, on_cuda: bool
) -> MatmulPrecision | None:
    """How fp32 matrices are to be multiplied.

    Args:
        chosen: What was asked for; `auto` is `high` (TF32) on a CUDA GPU with less than fp32 elsewhere, else `highest`.
        precision: Lightning's, resolved.
        on_cuda: Whether a CUDA GPU trains.

    Returns:
        What torch.set_float32_matmul_precision is to be given; None leaves it, so that nothing changes on a CPU.
    """
    if chosen != "auto":
        return chosen
    if not on_cuda:
        return None
    return "highest" if str(precision).startswith(("32", "64")) else "high"
