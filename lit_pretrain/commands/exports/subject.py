"""What is exported: a checkpoint of this suite, opened, with what every format asks of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.backbone import TextEncoder
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.checkpoints import objective_names, read_checkpoint
from lit_pretrain.objectives import CausalLanguageModeling
from lit_pretrain.required import required
from lit_pretrain.tracking.find import find_checkpoint, split_tower
from lit_pretrain.tracking.paths import shown_path

KINDS = {kind.__name__: kind for kind in (TextPretraining, VisionPretraining, FineTuning, ContrastivePretraining)}
# What a tower's embeddings are called, as in transformers.
EMBEDDINGS = {"text": "text_embeds", "vision": "image_embeds"}


@dataclass(frozen=True)
class Subject:
    """A checkpoint's module, on the CPU, in fp32 and in evaluation mode.

    Attributes:
        path: The checkpoint.
        step: Optimiser steps that it was trained for.
        record: What the checkpoint tells of itself.
        module: The module with its weights.
        tokenizer: Of text; null for pictures.
        tower: Which of two towers it is; null for both, and where there is one encoder.
    """

    path: Path
    step: int
    record: dict[str, Any]
    module: Any
    tokenizer: TextTokenizer | None
    tower: str | None = None

    @classmethod
    def open(cls, reference: str) -> "Subject":
        """Find and load a checkpoint.

        Args:
            reference: "last", a run's name or id, or a file; "...:text" or "...:vision" for one of two towers.

        Raises:
            UserError: If there is none, or nothing of its kind can be exported.
        """
        reference, tower = split_tower(reference)
        path = find_checkpoint(reference)
        checkpoint = read_checkpoint(path)
        record = checkpoint["lit_pretrain"]
        if record["module"] not in KINDS:
            raise UserError(
                f"{shown_path(path)} is a checkpoint of {record['module']}, which has no export: give one of "
                f"{', '.join(KINDS)}."
            )
        pair = record["module"] == ContrastivePretraining.__name__
        if tower is not None and not pair:
            raise UserError(
                f"{shown_path(path)} holds one {record['encoder_class']} and no two towers: leave ':{tower}' out."
            )
        module = KINDS[record["module"]].from_checkpoint(path).float().cpu().eval().requires_grad_(False)
        tokenizer = None
        if tower != "vision" and (pair or isinstance(module.encoder, TextEncoder)):
            if "tokenizer" not in record:
                raise UserError(f"{shown_path(path)} holds no tokenizer, without which text weights are worthless.")
            tokenizer = tokenizer_from_json(record["tokenizer"])
        return cls(path, int(checkpoint["global_step"]), record, module, tokenizer, tower)

    @property
    def is_pair(self) -> bool:
        """Whether it is two towers, to be exported together."""
        return isinstance(self.module, ContrastivePretraining) and self.tower is None

    @property
    def parts(self) -> "dict[str, Subject]":
        """The two towers, each by itself."""
        return {
            "text": replace(self, tower="text"),
            "vision": replace(self, tower="vision", tokenizer=None),
        }

    @property
    def encoder(self) -> Any:
        """The encoder inside, a TextEncoder or a VisionEncoder; of two towers the one that is meant."""
        return self.module.encoder if self.tower is None else self.module.towers[self.tower].encoder

    @property
    def projection(self) -> Tensor | None:
        """(E, D), from a tower's pooled features to where texts and pictures meet; null where there is one encoder."""
        return None if self.tower is None else self.module.towers[self.tower].projection.weight

    @property
    def scale_and_bias(self) -> tuple[float, float | None]:
        """What the cosines of both towers' embeddings are multiplied by, and what is added then; null for nothing."""
        objective = self.module.objective
        bias = objective.logit_bias
        return float(objective.log_scale.exp()), None if bias is None else float(bias)

    @property
    def maximum_length(self) -> int | None:
        """Tokens of a text at most, special tokens included: as many as it answers; null where any length is free."""
        encoder = self.encoder
        positions = encoder.max_positions if encoder.positions == "learned" else None
        trained = None
        if self.has_classifier:
            trained = self.module.modality.maximum_length
        elif self.tower is not None:
            trained = self.module.inputs.get("maximum_length")
        return min((length for length in (positions, trained) if length is not None), default=None)

    @property
    def causal(self) -> bool:
        """Whether a text's tokens see only those before them: by the encoder's make, or by all that it was taught."""
        return self.is_text and (self.encoder.causal or self.objective_names == [CausalLanguageModeling.__name__])

    @property
    def is_text(self) -> bool:
        """Whether it reads text, not pictures."""
        return isinstance(self.encoder, TextEncoder)

    @property
    def objectives(self) -> list[Any]:
        """Pretext tasks with their heads; empty after fine-tuning."""
        return list(getattr(self.module, "objectives", []))

    @property
    def objective_names(self) -> list[str]:
        """The pretext tasks' classes."""
        if isinstance(self.module, ContrastivePretraining):
            return [type(self.module.objective).__name__]
        return objective_names(self.record)

    @property
    def facts(self) -> LabelFacts | None:
        """What the classifier was trained on; null after pretraining."""
        return self.module.facts if isinstance(self.module, FineTuning) else None

    @property
    def has_classifier(self) -> bool:
        """Whether there is a head that names classes or predicts a number."""
        return self.facts is not None

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) from pooled features to logits, or to the number itself in its own unit."""
        weight, bias = self.module.head.weight, self.module.head.bias
        facts = required(self.facts)
        if facts.task == "regression":
            return weight * facts.std, bias * facts.std + facts.mean
        return weight, bias

    @property
    def labels(self) -> list[str]:
        """A name for every number that the classifier gives; empty after pretraining."""
        if self.facts is None:
            return []
        return list(self.facts.classes) or ["value"]

    @property
    def answer(self) -> str:
        """What the other libraries' logits are called here: numbers are in their own unit."""
        return "value" if required(self.facts).task == "regression" else "logits"

    @property
    def parameters(self) -> int:
        """Numbers in the encoder, and in the classifier or the projection if there is one; of both towers together."""
        if self.is_pair:
            parts = list(self.module.towers.values())
        elif self.tower is not None:
            parts = [self.module.towers[self.tower]]
        else:
            parts = [self.encoder, self.module.head] if self.has_classifier else [self.encoder]
        # Blocks that both towers share count once.
        return sum(parameter.numel() for parameter in nn.ModuleList(parts).parameters())

    @torch.no_grad()
    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the module computes, as in its training but for dropout, of `seeded_texts` or `seeded_pictures`.

        Returns:
            `token_features` (B, N, D), `pooled_embedding` (B, D), with a classifier what `answers` gives, and of a
            tower its embedding (B, E) of length 1, by its name in `EMBEDDINGS`.
        """
        if self.has_classifier:
            pooled = self.module.modality.encode(self.encoder, inputs)
        if self.is_text:
            arguments = inputs
            if self.objectives and all(isinstance(objective, CausalLanguageModeling) for objective in self.objectives):
                # As the objective asks for it, and not as what is exported says.
                arguments = self.objectives[0].make_pass(inputs, self.encoder, torch.Generator()).inputs
            tokens = self.encoder.forward_features(**arguments)
        else:
            tokens = self.encoder.forward_features(self.encoder.normalize(inputs["images"]))
        if not self.has_classifier:
            pooled = self.encoder.forward_head(tokens, inputs.get("attention_mask"))
        outputs = {"token_features": tokens, "pooled_embedding": pooled}
        if self.tower == "text":
            outputs[EMBEDDINGS["text"]] = self.module.embed_texts(inputs)
        elif self.tower == "vision":
            outputs[EMBEDDINGS["vision"]] = self.module.embed_pictures(inputs["images"])
        return outputs | (answers(self.module.head(pooled), required(self.facts)) if self.has_classifier else {})


def answers(logits: Tensor, facts: LabelFacts) -> dict[str, Tensor]:
    """What a head's outputs (B, C) say: `logits` and `probabilities` (B, C), or the `value` (B, 1) in its own unit."""
    if facts.task == "regression":
        return {"value": logits * facts.std + facts.mean}
    return {"logits": logits, "probabilities": logits.sigmoid() if facts.task == "multi_label" else logits.softmax(-1)}
