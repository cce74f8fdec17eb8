"""Contestants of BERT's pretraining step: ours and transformers' `BertForPreTraining`."""

import argparse
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.config import BertSize
from lit_pretrain.modules import TextPretraining
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction


def made_up_vocabulary(size: int) -> SimpleNamespace:
    """What masking asks of a tokenizer, for random tokens: five special ids first, no pieces inside words."""
    return SimpleNamespace(
        vocabulary_size=size, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * size
    )


def random_batch(arguments: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
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


def our_module(arguments: argparse.Namespace, size: str, compiled: bool) -> TextPretraining:
    """BERT's two objectives on an encoder of one of BERT's sizes, for made-up word pieces."""
    encoder = TextEncoder(
        size=cast(BertSize, size),
        transformer=TransformerConfig(dropout=arguments.dropout, attention_dropout=arguments.dropout),
        max_positions=max(512, arguments.sequence_length),
    )
    module = TextPretraining(encoder, [MaskedLanguageModeling(), NextSentencePrediction()], compile_blocks=compiled)
    module.tokenizer = cast(Any, made_up_vocabulary(arguments.vocabulary_size))
    return module


def transformers_loss(
    module: TextPretraining, batch: dict[str, Tensor], compiled: bool
) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """Transformers' model of the same shape and weights, and its loss on masked input made beforehand.

    Args:
        module: Ours, built.
        batch: Clean, on the device that the model is to run on.
        compiled: Whether torch.compile is applied to the model.
    """
    from transformers import BertForPreTraining

    device = batch["input_ids"].device
    with tempfile.TemporaryDirectory() as directory:
        module.encoder.save_pretrained(directory, tuple(module.objectives))
        model = BertForPreTraining.from_pretrained(directory).to(device).train()
    masking = module.objectives[0].make_pass(batch, module.encoder, torch.Generator(device=device))
    labels = torch.full_like(batch["input_ids"], -100)
    positions = masking.targets["indices"]
    labels.scatter_(1, positions, batch["input_ids"].gather(1, positions))
    inputs = {
        "input_ids": masking.inputs["input_ids"],
        "attention_mask": batch["attention_mask"].long(),
        "token_type_ids": batch["token_type_ids"],
        "labels": labels,
        "next_sentence_label": batch["next_sentence_label"],
    }
    forward = torch.compile(model) if compiled else model
    return model, lambda: forward(**inputs).loss
