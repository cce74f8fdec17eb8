"""Our training step, bare: no loader, no Lightning, no logging."""

import argparse
from types import SimpleNamespace

import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.commands.benchmarks.contest import Contestant
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction, compute_objectives


def made_up_vocabulary(size: int) -> SimpleNamespace:
    """What masking asks of a tokenizer, for random tokens: five special ids first, no pieces inside words."""
    return SimpleNamespace(
        vocabulary_size=size, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * size
    )


def random_batch(arguments: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Full-length sentence pairs of random word pieces."""
    shape = (arguments.batch_size, arguments.sequence_length)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, arguments.vocabulary_size, shape, generator=generator)
    half = arguments.sequence_length // 2
    input_ids[:, 0], input_ids[:, half], input_ids[:, -1] = 2, 3, 3
    segments = (torch.arange(shape[1]) > half).long().expand(shape).contiguous()
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones(shape, dtype=torch.bool),
        "token_type_ids": segments,
        "next_sentence_label": torch.randint(0, 2, shape[:1], generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def our_step(
    arguments: argparse.Namespace, size: str, batch: dict, dtype: torch.dtype, compiled: bool
) -> tuple[Contestant, TextPretraining]:
    """Our training step, and the module it trains."""
    device = batch["input_ids"].device
    dropout = arguments.dropout
    encoder = TextEncoder(
        arguments.vocabulary_size,
        size,
        TransformerConfig(dropout=dropout, attention_dropout=dropout),
        max_positions=max(512, arguments.sequence_length),
    )
    module = TextPretraining(encoder, [MaskedLanguageModeling(), NextSentencePrediction()])
    vocabulary = made_up_vocabulary(arguments.vocabulary_size)
    for objective in module.objectives:
        objective.build(encoder, vocabulary)
    module.to(device).train()
    if compiled:
        encoder.compile_blocks()
    optimizer = make_optimizer([module], AdamWConfig(learning_rate=1e-4))
    generator = torch.Generator(device=device)
    parameters = list(module.parameters())

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = module.sum_losses(compute_objectives(encoder, module.objectives, batch, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)

    return Contestant("ours, compiled" if compiled else "ours, eager", step), module


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize()
