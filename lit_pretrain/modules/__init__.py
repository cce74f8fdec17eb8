"""LightningModules: they join an encoder, objectives and an optimiser, and answer what the callbacks ask."""

from lit_pretrain.modules.contrastive.contrastive_pretraining import ContrastivePretraining
from lit_pretrain.modules.contrastive.replay import TextReplay, VisionReplay
from lit_pretrain.modules.fine_tuning.fine_tuning import FineTuning
from lit_pretrain.modules.text_pretraining import TextPretraining
from lit_pretrain.modules.vision_pretraining import VisionPretraining

__all__ = ["ContrastivePretraining", "FineTuning", "TextPretraining", "TextReplay", "VisionPretraining", "VisionReplay"]
