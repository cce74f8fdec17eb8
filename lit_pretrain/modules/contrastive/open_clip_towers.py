"""Which towers open_clip's CLIP has a place for."""

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.weights.open_clip_settings import POOLINGS


def refuse_what_clip_lacks(text: TextEncoder, vision: VisionEncoder) -> None:
    """Raise a `UserError` naming whatever of two towers open_clip's CLIP has no place for."""
    quick = {name: encoder.config.activation == "quick_gelu" for name, encoder in (("text", text), ("vision", vision))}
    lacking = {
        "text": {
            "causal: false": not text.causal,
            f"pooling: {text.pooling}": text.pooling != "end_of_text",
            f"positions: {text.positions}": text.positions != "learned",
            "embedding_norm: true": text.embedding_norm,
            f"ngrams: {text.ngrams}": text.ngrams != 1,
        },
        "vision": {
            "class_token: false": not vision.class_token,
            f"registers: {vision.registers}": vision.registers > 0,
            f"pooling: {vision.pooling}": vision.pooling not in POOLINGS.values(),
            f"channels: {vision.channels}": vision.channels != 3,
            "embedding_norm: true and patch_bias: true": vision.embedding_norm and vision.patch_bias,
            "the activation quick_gelu of one tower alone": quick["text"] != quick["vision"],
        },
    }
    names = []
    for tower, encoder in (("text", text), ("vision", vision)):
        config = encoder.config
        normed = config.final_norm or getattr(encoder, "norm_after_pooling", False)
        lacking[tower] |= {
            f"activation: {config.activation}": config.gated,
            f"norm: {config.norm}": config.norm != "layer",
            "norm_bias: false": not config.norm_bias,
            "first_attention_norm: false": not config.first_attention_norm,
            f"attention_window: {config.attention_window}": config.attention_window is not None,
            "query_key_norm: true": config.query_key_norm,
            f"norm_order: {config.norm_order}": config.norm_order != "pre",
            "final_norm: false": not normed,
        }
        missing = [name for name, present in lacking[tower].items() if present]
        names += [f"a {tower} tower with {' and '.join(missing)}"] if missing else []
    if names:
        raise UserError(
            f"open_clip's CLIP cannot hold {' and '.join(names)}: pretrain with CLIP's own settings if the weights "
            "must load there."
        )
