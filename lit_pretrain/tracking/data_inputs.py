"""The data of a run as MLflow's inputs: name, digest, number of samples, and what each part is used for.

MLflow keeps one data set for a name with a digest in an experiment, and one use of it in a run. Parts of a source have
one fingerprint, as have studies' cells with few and with many labels; so part and size are in the name.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import without_credentials

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# What is read in a stage; `evaluate` fits its probes on training data.
CONTEXTS = {
    "fit": ("training", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("prediction",),
}
CONTEXT_TAG = "mlflow.data.context"
UNITS = ("sequences", "samples", "pictures")
# Of corpora that are mixed in, and of what goes beside pairs.
CORPORA = ("", "replay_", "text_", "vision_")
# MLflow's own limits.
NAME_LIMIT, DIGEST_LIMIT = 500, 36

# One part: name, digest, source_type, source, profile, context, corpus; texts.
DataInput = dict[str, str]


def data_inputs(facts: Mapping[str, Any], contexts: Iterable[str]) -> list[DataInput]:
    """What a run reads.

    Args:
        facts: What the data module says of itself, or what a run has noted of it.
        contexts: Which of training, validation, test and prediction it reads.
    """
    contexts = list(contexts)
    found = []
    for corpus in CORPORA:
        source, fingerprint = facts.get(f"{corpus}source"), facts.get(f"{corpus}data_fingerprint")
        for context in contexts if source is not None and fingerprint else ():
            counts = (facts.get(f"{corpus}{context}_{unit}") for unit in UNITS)
            count, unit = next(((number, unit) for number, unit in zip(counts, UNITS, strict=True) if number), (0, ""))
            if not count and context in ("validation", "test"):
                continue
            origin = str(facts.get(f"{corpus}{context}_source", source))
            size = f"[{count}]" if count else ""
            profile: dict[str, Any] = {"num_rows": int(count), "unit": unit} if count else {}
            profile |= {name: facts[key] for name in ("captions",) if (key := f"{corpus}{context}_{name}") in facts}
            kind, place = source_of(origin)
            found.append(
                {
                    "name": f"{short_name(origin)[: NAME_LIMIT - 60]}:{context}{size}",
                    "digest": str(facts.get(f"{corpus}{context}_fingerprint") or fingerprint)[:DIGEST_LIMIT],
                    "source_type": kind,
                    "source": json.dumps(place),
                    "profile": json.dumps(profile),
                    "context": context,
                    "corpus": corpus,
                }
            )
    return found


def short_name(source: str) -> str:
    """What a person knows a source by: a name of the hub as it is, of a path or an address its last part."""
    if source == "the bundled sample":
        return "bundled-sample"
    source = without_credentials(source).split("?")[0].rstrip("/")
    parts = PurePath(source).parts
    return source if len(parts) <= 2 and not Path(source).is_absolute() else parts[-1]


def source_of(source: str) -> tuple[str, dict[str, str]]:
    """MLflow's type of a source, and what it notes of one."""
    source = without_credentials(source)
    if "://" in source:
        return "http", {"url": source}
    if source.count("/") <= 1 and "[" not in source and " " not in source and not Path(source).expanduser().exists():
        return "hugging_face", {"path": source}
    return "local", {"uri": source}


def as_entities(inputs: Iterable[DataInput]) -> "list[DatasetInput]":
    """In MLflow's classes."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(one["name"], one["digest"], one["source_type"], one["source"], None, one["profile"]),
            [InputTag(CONTEXT_TAG, one["context"])],
        )
        for one in inputs
    ]
