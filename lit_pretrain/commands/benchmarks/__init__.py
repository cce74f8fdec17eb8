"""The measurements behind `python -m lit_pretrain benchmark`."""
