"""LightningModules: they join an encoder, objectives and an optimiser, and answer what the callbacks ask."""

from lit_pretrain.modules.text_pretraining import TextPretraining

__all__ = ["TextPretraining"]
