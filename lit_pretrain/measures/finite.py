"""Features that are not finite stop a measurement: compared with anything, not a number is neither larger nor smaller,
so that neighbours, ranks and probes of it would look like any others, or like perfect ones.
"""

from torch import Tensor

from lit_pretrain.errors import UserError


def check_finite(features: Tensor, content: str = "features") -> Tensor:
    """Refuse features or embeddings that hold NaN or infinity.

    Args:
        features: (N, ...) float.
        content: What they are, for the sentence.

    Returns:
        The features.

    Raises:
        UserError: If any is not finite.
    """
    # A sum is finite only if every term is, and needs no tensor of the features' size.
    if bool(features.sum(dtype=features.dtype).isfinite()):
        return features
    rows = (~features.isfinite()).flatten(1).any(dim=1).nonzero().flatten()
    if len(rows):
        raise UserError(
            f"The {content} of {len(rows)} of {len(features)} samples are not finite (the first is sample "
            f"{int(rows[0])}): the weights are spoilt, or too large for this precision; measure an earlier checkpoint, "
            "or in fp32."
        )
    return features
