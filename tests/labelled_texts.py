"""Made-up texts with labels of every kind, and the small tokenizer and encoder to learn them."""

from pathlib import Path

import datasets
import numpy
from text_corpus import OBJECTS, SUBJECTS, VERBS

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.data import LabelledDataModule
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces

WORDS = sorted({word for text in (*SUBJECTS, *VERBS, *OBJECTS) for word in text.split()})
TOKENIZER = WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *WORDS], lowercase=True))
LETTERS = [letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" if letter not in WORDS]
# One that can spell any other word too, since texts of unknown pieces are refused.
SPELLING = WordPieceTokenizer(
    from_pieces([*SPECIAL_TOKENS, *WORDS, *LETTERS, *(f"##{letter}" for letter in [*LETTERS, "a"])], lowercase=True)
)


def write_texts(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Sentences: `label` is told by the verb, `topics` by subject and object, `score` by the verbs of both texts.

    `exact` holds numbers that 16 bits cannot tell apart.
    """
    generator = numpy.random.default_rng(seed)
    rows: dict[str, list] = {name: [] for name in ("text", "other", "label", "topics", "score", "exact")}
    for _ in range(count):
        words = [generator.choice(part) for part in (SUBJECTS, VERBS, OBJECTS)]
        others = [
            word if generator.random() < 0.5 else generator.choice(part)
            for word, part in zip(words, (SUBJECTS, VERBS, OBJECTS), strict=True)
        ]
        rows["text"].append(" ".join(words))
        rows["other"].append(" ".join(others))
        rows["label"].append("takes" if words[1] in VERBS[:3] else "gives")
        rows["topics"].append(
            [
                name
                for name, part in (("land", SUBJECTS[1:3]), ("law", OBJECTS[1:]))
                if words[0] in part or words[2] in part
            ]
        )
        rows["score"].append(2.0 * (words[1] in VERBS[:3]) + 3.0 * (others[1] in VERBS[:3]))
        rows["exact"].append(1000.0 + 0.37 * len(rows["exact"]))
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    return path


def make_texts(path: Path, tokenizer: Path | None = None, **settings: object) -> LabelledDataModule:
    """A data module over them."""
    defaults = {"batch_size": 16, "validation_share": 0.25, "maximum_length": 24, "seed": 1, "label_column": "label"}
    return LabelledDataModule(
        "parquet", data_files=str(path), tokenizer=str(tokenizer) if tokenizer else None, **defaults | settings
    )


def make_encoder(**settings: object) -> TextEncoder:
    """A very small encoder that waits for its vocabulary."""
    return TextEncoder(transformer=TransformerConfig(depth=2, width=32, heads=2), **{"max_positions": 32} | settings)
