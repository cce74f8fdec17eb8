"""In which format a training's encoder can be given to other libraries, for the record of its run."""

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.modules.contrastive.open_clip_towers import refuse_what_clip_lacks

# Holds any encoder.
GENERAL = "onnx"


def export_facts(*encoders: TextEncoder | VisionEncoder) -> dict[str, str]:
    """`export_format`, where only the general one holds the encoder, or the two towers; else nothing.

    Args:
        encoders: One, or the text's and the pictures'.
    """
    if len(encoders) == 1:
        fits = encoders[0].fits_public_format()
    else:
        text, vision = encoders
        try:
            refuse_what_clip_lacks(text, vision)  # type: ignore[arg-type]
            fits = True
        except UserError:
            fits = False
    return {} if fits else {"export_format": GENERAL}
