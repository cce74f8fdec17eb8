"""Measure training speed beside peers, in one process and on the same tokens."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument("what", choices=["text"], help="which part of the suite to measure")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini", "small"], help="BERT sizes to measure")
    parser.add_argument("--vocabulary-size", type=int, default=30_522, help="word pieces")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences of a batch")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout of both models, attention's included")
    parser.add_argument("--precision", choices=["auto", "32-true", "bf16-mixed"], default="auto", help="auto: as fit")
    parser.add_argument("--rounds", type=int, default=5, help="each contestant is timed once a round, in turn")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="time for a contestant in a round, at least one step"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--fit", action="store_true", help="also compare whole fits on the sample with their bare steps"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from lit_pretrain.commands.benchmarks import text

    return text.run(arguments)
