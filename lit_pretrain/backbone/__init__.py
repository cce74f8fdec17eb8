"""nn.Modules: the shared Transformer, its embeddings, and the encoders, which build themselves from `weights`."""

from lit_pretrain.backbone.config import BERT_SIZES, VIT_SIZES, TransformerConfig, VisionTransformerConfig
from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.backbone.transformer import Transformer
from lit_pretrain.backbone.vision_encoder import VisionEncoder

__all__ = [
    "BERT_SIZES",
    "VIT_SIZES",
    "TextEncoder",
    "Transformer",
    "TransformerConfig",
    "VisionEncoder",
    "VisionTransformerConfig",
]
