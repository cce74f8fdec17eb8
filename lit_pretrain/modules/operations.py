"""What a training step costs in floating-point operations, of which a training's share of the machine's peak is told.

Matrix products are counted, a multiply-add as two operations (Kaplan et al. 2020, arXiv:2001.08361), of the model as it
is: what is computed a second time to save memory is not (the model's own operations of PaLM, arXiv:2204.02311, appendix
B). The backward pass has a product for the gradients of a layer's weights and one for those of its inputs, each as dear
as the forward pass. So a part counts

- three times its forward pass where it is trained, whatever lies below it (the usual convention: of the lowest trained
  part the gradients of its inputs are counted too, which are never made);
- twice where it is frozen and something below it is trained, for gradients pass through it;
- once where neither is, for nothing needs a backward pass there.

What is trained is what asks for gradients: a part that waits for its turn at a learning rate of 0 is computed in full.
"""

from torch import nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder


def is_trained(module: nn.Module) -> bool:
    """Whether any parameter of a module asks for gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())


def passes_of(trained: bool, trained_below: bool) -> float:
    """Operations of a training step of a part, in forward passes of it; see the module's rule."""
    return 3.0 if trained else 2.0 if trained_below else 1.0


def encoder_operations(encoder: TextEncoder | VisionEncoder, tokens: int) -> float:
    """Operations of a training pass of one sequence through an encoder: patch embedding and blocks.

    Args:
        encoder: Of texts, whose look-ups cost nothing, or of pictures.
        tokens: Of the sequence, class token and padding included.
    """
    below = is_trained(encoder.embeddings)
    operations = 0.0
    if isinstance(encoder, VisionEncoder):
        patch = encoder.channels * encoder.patch_size**2
        operations += 2.0 * tokens * patch * encoder.width * passes_of(below, False)
    for index, block in enumerate(encoder.transformer.blocks):
        trained = is_trained(block)
        forward = tokens * encoder.config.block_flops_per_token(index, tokens)
        operations += forward * passes_of(trained, below)
        below = below or trained
    return operations


def picture_operations(encoder: VisionEncoder) -> float:
    """Operations of a training pass of one whole picture."""
    return encoder_operations(encoder, encoder.prefix_tokens + encoder.patches)
