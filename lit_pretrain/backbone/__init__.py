"""nn.Modules only: the shared Transformer, its embeddings, the encoders, and public weights in and out."""

from lit_pretrain.backbone.config import BERT_SIZES, TransformerConfig
from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.backbone.transformer import Transformer

__all__ = ["BERT_SIZES", "TextEncoder", "Transformer", "TransformerConfig"]
