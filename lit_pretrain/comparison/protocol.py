"""What a figure was measured with: figures are compared only where that is the same.

A protocol is a dictionary from what may differ (metric, split, data, samples, ...) to what it was; two that differ
tell by their entries why their figures are not comparable.
"""

import re
from collections.abc import Mapping

from lit_pretrain.comparison.runs import Run

Protocol = dict[str, str]

SAMPLES = ("samples", "sequences", "pictures")
# Of objectives whose samples are compared with the others of their batch: each figure depends on its size.
COMPARES_BATCH = ("contrastive", "lejepa", "bag_of_ngrams")
# What a figure has of the one kind, it has not of the other.
KINDS = (
    (("picture size",), ("maximum length", "tokenizer")),
    (("task",), ("objectives", "objectives' settings", "batch size")),
)
HASHES = ("data", "training data", "tokenizer")
LIMITS = {"validation": "limit_val_batches", "test": "limit_test_batches"}


def protocol_of(run: Run, metric: str) -> Protocol:
    """What a metric of a run was measured with, as far as the run tells.

    Args:
        run: The one that has logged it.
        metric: Its name without `best/`.
    """
    split, _, tail = metric.partition("/")
    protocol: dict[str, str | None] = {"metric": metric, "split": split}
    if split == "evaluate":
        protocol |= frozen_features(run)
    elif split in LIMITS:
        own = run.fact(f"{split}_fingerprint")
        protocol |= {
            "data": own or run.fact("data_fingerprint"),
            "samples": samples_of(run, split),
            "task": run.parameters.get("model_facts.task"),
            "maximum length": run.fact("maximum_length") or run.parameters.get("data.sequence_length"),
            "picture size": run.fact("stored_size"),
        }
        if run.parameters.get("model_facts.task") is None:
            protocol |= pretext(run, tail)
    elif split == "train":
        protocol |= {"data": run.fact("data_fingerprint"), **pretext(run, tail)}
    return {name: value for name, value in protocol.items() if value is not None}


def frozen_features(run: Run) -> dict[str, str | None]:
    """Of a probe or of neighbours: what it was fitted on, and what on it was measured."""
    stage = run.fact("stage") or run.fact("zero_shot.stage")
    return {
        "split": stage,
        "data": run.fact(f"{stage}_fingerprint") or run.fact("data_fingerprint"),
        "samples": run.fact("stage_samples") or run.fact("zero_shot.stage_samples"),
        "task": run.fact("task"),
        "training data": run.fact("data_fingerprint"),
        "input": run.fact("resolution"),
        "pooling": run.fact("pooling"),
        "protocols": run.fact("protocols") or run.fact("zero_shot.templates"),
    }


def samples_of(run: Run, split: str) -> str | None:
    """How many samples a split has, and how many of them were measured."""
    counts = (run.fact(f"{split}_{name}") for name in SAMPLES)
    count = next((value for value in counts if value is not None), None)
    limit = run.parameters.get(f"trainer.{LIMITS[split]}", "")
    if limit and limit not in ("1.0", "None", "null"):
        noun = "batch" if limit == "1" else "batches"
        batches = f"{limit} {noun} of {batch_size_of(run) or '?'}"
        return f"{batches}, of {shown_entry('samples', count)}" if count is not None else batches
    return count


def pretext(run: Run, tail: str) -> dict[str, str | None]:
    """What else a pretraining's figure depends on: the objectives' settings, the word pieces, a batch's negatives.

    Args:
        run: Of a pretraining.
        tail: The metric without its split: "loss" is the weighted sum, "<objective>/loss" an objective's own.
    """
    objective = tail.rpartition("/")[0].replace("replay/", "")
    settings = []
    for key, value in sorted(run.parameters.items()):
        name = key.removeprefix("model.objectives.")
        if name == key or objective and (snake_case(name.partition(".")[0]) != objective or name.endswith(".weight")):
            continue
        settings.append(f"{name} {value}")
    objectives = run.parameters.get("model_facts.objectives")
    name = (objective or objectives or run.parameters.get("model", "")).lower()
    in_batch = any(word in name for word in COMPARES_BATCH)
    return {
        "objectives": objectives if not objective else None,
        "objectives' settings": ", ".join(settings) or None,
        "tokenizer": run.fact("tokenizer_hash"),
        "batch size": batch_size_of(run) if in_batch else None,
    }


def batch_size_of(run: Run) -> str | None:
    """Samples of a batch of a process; of pairs beside which texts or pictures are replayed, those of the pairs."""
    return run.parameters.get("data.batch_size", run.parameters.get("data.pairs.batch_size"))


def snake_case(name: str) -> str:
    """MaskedLanguageModeling -> masked_language_modeling."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def why_not_comparable(first: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What differs between two protocols, with the values of the other and of the first."""
    if first["metric"] != other["metric"]:
        # All else follows from that.
        return f"the figure is {other['metric']}, not {first['metric']}"
    reasons = []
    if first.get("objectives") != other.get("objectives"):
        # As do these.
        first, other = ({**one, "objectives' settings": "", "batch size": ""} for one in (first, other))
    for name in dict.fromkeys([*first, *other]):
        values = [
            shown_entry(name, protocol[name]) if name in protocol else absence(name, protocol)
            for protocol in (other, first)
        ]
        if first.get(name) != other.get(name):
            reasons.append(f"{name} differ" if values[0] == values[1] else f"{name} {values[0]}, not {values[1]}")
    return "; ".join(reasons)


def absence(name: str, protocol: Mapping[str, str]) -> str:
    """What stands for an entry that a protocol lacks: none where such figures have none, as those of texts have no size
    of pictures, and unknown where their run does not tell.
    """
    kinds = [pair for one, other in KINDS for pair in ((one, other), (other, one))]
    lacks = any(name in own and any(entry in protocol for entry in others) for own, others in kinds)
    return "none" if lacks or name == "batch size" else "unknown"


def shown_entry(name: str, value: str) -> str:
    """An entry of a protocol in little room."""
    if name in HASHES:
        return value[:8]
    return f"{int(value):,}" if value.isdecimal() else value if len(value) <= 60 else f"{value[:57]}…"


def protocol_words(protocol: Mapping[str, str]) -> str:
    """A protocol in a line."""
    split, samples, data = protocol.get("split", ""), protocol.get("samples"), protocol.get("data")
    words = [f"{protocol['metric']} on {split} data"] if split else [protocol["metric"]]
    if samples is not None:
        words.append(f"{shown_entry('samples', samples)} samples" if samples.isdecimal() else samples)
    words += [f"fingerprint {data[:8]}"] if data else []
    shown = ("task", "maximum length", "picture size", "objectives", "tokenizer", "input", "pooling", "protocols")
    for name in shown:
        if name in protocol:
            whole = name in ("objectives", "protocols")
            words.append(protocol[name] if whole else f"{name} {shown_entry(name, protocol[name])}")
    return ", ".join(words)
