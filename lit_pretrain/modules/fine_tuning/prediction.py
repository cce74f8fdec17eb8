"""Answers of a fine-tuned model to raw samples, in Python: no data module, no trainer."""

from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device


@torch.no_grad()
def answer(module: Any, samples: list[Any], batch_size: int) -> list[dict[str, Any]]:
    """Answer raw samples; see `FineTuning.predict`."""
    samples = module.modality.as_samples(samples)
    training = module.training
    module.eval()
    rows: list[dict[str, Any]] = []
    for start in range(0, len(samples), batch_size):
        batch = module.modality.batch_of(samples[start : start + batch_size], module.encoder, module.tokenizer)
        answers = module.task.answers(module.logits(move_data_to_device(batch, module.device)))
        if "probability" in answers:
            probabilities = answers["probability"].tolist()
            answers["probability"] = [dict(zip(module.classes, row, strict=True)) for row in probabilities]
        else:
            answers["value"] = answers["value"].tolist()
        rows += [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]
    module.train(training)
    return rows
