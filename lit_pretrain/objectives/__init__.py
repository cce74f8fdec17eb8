"""Pretext tasks, one file each: every one corrupts a clean batch, owns its head, and returns a loss and metrics."""

from lit_pretrain.objectives.bag_of_ngrams import BagOfNgrams
from lit_pretrain.objectives.bag_of_words import BagOfWords
from lit_pretrain.objectives.batch import DataFacts, PictureBatch, TextBatch
from lit_pretrain.objectives.causal_language_modeling import CausalLanguageModeling
from lit_pretrain.objectives.classification import classification_output
from lit_pretrain.objectives.colorization import Colorization
from lit_pretrain.objectives.contrastive import Contrastive
from lit_pretrain.objectives.contrastive_spans import ContrastiveSpans
from lit_pretrain.objectives.feature_distillation import FeatureDistillation
from lit_pretrain.objectives.jigsaw import Jigsaw
from lit_pretrain.objectives.lejepa import LeJEPA
from lit_pretrain.objectives.masked_image_modeling import MaskedImageModeling
from lit_pretrain.objectives.masked_language_modeling import MaskedLanguageModeling
from lit_pretrain.objectives.next_sentence_prediction import NextSentencePrediction
from lit_pretrain.objectives.objective import (
    EncoderPass,
    Objective,
    ObjectiveOutput,
    clean_inputs,
    compute_objectives,
    global_mean,
)
from lit_pretrain.objectives.patch_location import PatchLocation
from lit_pretrain.objectives.replaced_token_detection import ReplacedTokenDetection
from lit_pretrain.objectives.rotation import Rotation
from lit_pretrain.objectives.sentence_order import SentenceOrder
from lit_pretrain.objectives.vision_objective import VisionObjective

__all__ = [
    "BagOfNgrams",
    "BagOfWords",
    "CausalLanguageModeling",
    "Colorization",
    "Contrastive",
    "ContrastiveSpans",
    "DataFacts",
    "EncoderPass",
    "FeatureDistillation",
    "Jigsaw",
    "LeJEPA",
    "MaskedImageModeling",
    "MaskedLanguageModeling",
    "NextSentencePrediction",
    "Objective",
    "ObjectiveOutput",
    "PatchLocation",
    "PictureBatch",
    "ReplacedTokenDetection",
    "Rotation",
    "SentenceOrder",
    "TextBatch",
    "VisionObjective",
    "classification_output",
    "clean_inputs",
    "compute_objectives",
    "global_mean",
]
