"""lit_pretrain: pretrain Transformers on text, on images and on both, and measure what it bought.

Nothing heavy is imported here: `python -m lit_pretrain --help` must answer before torch could load.
"""

__version__ = "0.2.0"
