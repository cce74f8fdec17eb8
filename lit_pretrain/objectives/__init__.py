"""Pretext tasks, one file each: every one corrupts a clean batch, owns its head, and returns a loss and metrics."""

from lit_pretrain.objectives.causal_language_modeling import CausalLanguageModeling
from lit_pretrain.objectives.masked_language_modeling import MaskedLanguageModeling
from lit_pretrain.objectives.next_sentence_prediction import NextSentencePrediction
from lit_pretrain.objectives.objective import Objective, ObjectiveOutput, compute_objectives
from lit_pretrain.objectives.replaced_token_detection import ReplacedTokenDetection

__all__ = [
    "CausalLanguageModeling",
    "MaskedLanguageModeling",
    "NextSentencePrediction",
    "Objective",
    "ObjectiveOutput",
    "ReplacedTokenDetection",
    "compute_objectives",
]
