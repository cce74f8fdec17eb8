"""Encoding a batch in chunks, so that its memory is a chunk's and its loss and gradients are the whole batch's.

A contrastive loss compares every sample with all others, so that gradients of parts of a batch do not add up to those
of the whole, as accumulation would need. GradCache (Gao et al. 2021, arXiv:2101.06983) encodes the batch without
keeping activations, takes the loss of all embeddings and its gradients by them, and encodes each chunk again to carry
these on to the weights. Here that is one operation of the backward pass, so that mixed precision, clipping, schedules
and DDP remain the trainer's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

from lit_pretrain.required import required

Inputs = dict[str, Tensor]
Encode = Callable[[Inputs], Tensor]


def encode_in_chunks(
    encode: Encode,
    inputs: Inputs,
    chunk_size: int | None,
    parameters: Iterable[Tensor],
    sharded: bool = False,
) -> Tensor:
    """Embeddings of a batch.

    Args:
        encode: Makes (b, E) of some samples' inputs.
        inputs: (B, ...) each; no gradient is carried on to them.
        chunk_size: Samples whose activations are held at a time; null holds those of all.
        parameters: What gradients are wanted of.
        sharded: Whether parameters are gathered when they are needed, as by FSDP. Then PyTorch's checkpointing is taken
            for each chunk. It gives the same, but the graph's many small pieces, which stay from chunk to chunk, keep
            the C library from using freed activations' memory again: on a CPU the memory grew to several times this.

    Returns:
        (B, E).
    """
    samples = len(next(iter(inputs.values())))
    if chunk_size is None or chunk_size >= samples:
        return encode(inputs)
    if sharded and torch.is_grad_enabled():
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in split(inputs, chunk_size)])
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _InChunks.apply(encode, inputs, chunk_size, *trained)


def split(inputs: Inputs, chunk_size: int) -> list[Inputs]:
    """The inputs of each chunk, in their order."""
    parts = zip(*(values.split(chunk_size) for values in inputs.values()), strict=True)
    return [dict(zip(inputs, part, strict=True)) for part in parts]


class _InChunks(torch.autograd.Function):
    """The two passes over all chunks; see `encode_in_chunks`."""

    @staticmethod
    def forward(ctx: Any, encode: Encode, inputs: Inputs, chunk_size: int, *parameters: Tensor) -> Tensor:  # noqa: D102
        parts = split(inputs, chunk_size)
        first = next(iter(inputs.values()))
        ctx.encode, ctx.parts, ctx.parameters = encode, parts, parameters
        ctx.chunk_size = chunk_size
        # The chunks come in the same order in both passes, so that where the draws of dropout began is enough.
        ctx.draws = torch.get_rng_state(), *get_device_states(first)
        kind = first.device.type
        ctx.autocast = {"device_type": kind, "dtype": torch.get_autocast_dtype(kind), "cache_enabled": False}
        ctx.autocast["enabled"] = torch.is_autocast_enabled(kind)
        # A weight that is brought to bf16 here, without a graph, must not be found by whatever needs one later.
        with torch.autocast(**ctx.autocast):
            start = 0
            whole: Tensor | None = None
            for part in parts:
                embedded = encode(part)
                if whole is None:
                    whole = embedded.new_empty(len(first), *embedded.shape[1:])
                whole[start : start + len(embedded)] = embedded
                start += len(embedded)
        return required(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: D102
        state, devices, states = ctx.draws
        totals: list[Tensor | None] = [None] * len(ctx.parameters)
        with torch.random.fork_rng(devices, device_type=ctx.autocast["device_type"]), torch.autocast(**ctx.autocast):
            torch.set_rng_state(state)
            set_device_states(devices, states)
            for part, own in zip(ctx.parts, gradient.split(ctx.chunk_size), strict=True):
                with torch.enable_grad():
                    embedded = ctx.encode(part)
                gradients = torch.autograd.grad(embedded, ctx.parameters, own, allow_unused=True)
                del embedded
                for place, own_gradient in enumerate(gradients):
                    if own_gradient is not None:
                        earlier = totals[place]
                        totals[place] = own_gradient.clone() if earlier is None else earlier.add_(own_gradient)
        return None, None, None, *totals
