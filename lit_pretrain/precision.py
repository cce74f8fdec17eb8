"""Which precision a training uses when nobody chose one.

bf16 multiplies matrices several times faster than fp32 on recent GPUs and on CPUs with AMX or AVX512-BF16; on other
CPUs PyTorch emulates it, ten to a hundred times slower than fp32. So it is asked for only where the hardware has it.
"""


def hardware_bf16() -> bool:
    """Whether the accelerator, or the CPU if there is none, multiplies bf16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_precision(precision: str | int) -> str | int:
    """`auto` as `bf16-mixed` where the hardware has bf16, else `32-true`; anything else as it is."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if hardware_bf16() else "32-true"
