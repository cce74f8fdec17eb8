"""The training samples nearest to a query: what an encoder takes for alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.errors import UserError
from lit_pretrain.errors import nearest as nearest_name
from lit_pretrain.evaluation.features import features_of_batches
from lit_pretrain.evaluation.labelled_data import Part
from lit_pretrain.evaluation.preparation import EvaluationData
from lit_pretrain.evaluation.protocols import Setting, layer_features
from lit_pretrain.evaluation.subjects import Subject
from lit_pretrain.measures.knn import nearest
from lit_pretrain.required import required

DRAWN_QUERIES = 8


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        name: What a person knows it by: its sample id, its file, or the text itself.
        batch: Of one sample, as the encoder takes it.
        label: Of a sample of the data; null otherwise.
    """

    name: str
    batch: dict[str, Tensor]
    label: Tensor | None = None


def find_queries(references: Sequence[str], data: EvaluationData, subject: Subject, seed: int) -> list[Query]:
    """The queries that are asked for: sample ids, texts or picture files; drawn ones if none is.

    Args:
        references: As on the command line. Whole numbers are sample ids, everything else is a text or a file.
        data: The data.
        subject: Whose tokenizer a text goes through.
        seed: Source of drawn queries.

    Raises:
        UserError: If there is no such sample, or a file is no picture.
    """
    ids = data.test.sample_ids()
    if not references:
        count = min(DRAWN_QUERIES, len(ids))
        places = numpy.sort(sample_generator(seed, "queries").permutation(len(ids))[:count])
        references = [str(int(ids[place])) for place in places]
    return [
        sample_query(int(reference), ids, data.test)
        if reference.isdecimal()
        else text_query(reference, data, subject)
        if subject.is_text
        else picture_query(reference, data)
        for reference in references
    ]


def sample_query(sample_id: int, ids: Tensor, part: Part) -> Query:
    """A sample of the data."""
    places = (ids == sample_id).nonzero().flatten()
    if not len(places):
        raise UserError(
            f"The {part.name} part has no sample {sample_id}: its ids go from {int(ids.min())} to {int(ids.max())}"
            f"{'' if len(ids) == int(ids.max() - ids.min()) + 1 else ', but not all of them are in it'}."
        )
    sample = part.at(places[:1])
    return Query(
        f"{part.name} {sample_id}", next(sample.batches()), None if sample.labels is None else sample.labels[0]
    )


def text_query(text: str, data: EvaluationData, subject: Subject) -> Query:
    """A text of a person's own."""
    import datasets

    from lit_pretrain.data.text.text_encoding import encode_texts

    settings = replace(data.data_module.text, columns=("text",))
    rows = numpy.arange(1)
    encoded = encode_texts(datasets.Dataset.from_dict({"text": [text]}), rows, required(subject.tokenizer), settings)
    return Query(text, encoded.batch(rows))


def picture_query(file: str, data: EvaluationData) -> Query:
    """A picture of a person's own, brought to the size of the data's."""
    from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode

    if not Path(file).is_file():
        siblings = [str(path) for path in Path(file).parent.glob("*")] if Path(file).parent.is_dir() else []
        raise UserError(f"The query {file} is neither a sample id nor a picture file{nearest_name(file, siblings)}.")
    try:
        pixels = decode(EncodedPicture(0, file, file), Square(data.data_module.facts.stored_size))
    except UnreadablePictureError as error:
        raise UserError(f"The query {error}: give a picture file or a sample id.") from error
    return Query(Path(file).name, {"images": torch.tensor(pixels)[None]})


@dataclass(frozen=True)
class Found:
    """The nearest training samples of every query at a layer.

    Attributes:
        layer: Block, counted from 1.
        cosines: (Q, K), the largest first.
        places: (Q, K) among the training part's samples.
    """

    layer: int
    cosines: Tensor
    places: Tensor


def find_neighbors(
    subject: Subject, queries: Sequence[Query], train: Part, layers: Sequence[int], setting: Setting, count: int
) -> list[Found]:
    """The nearest training samples of every query at some layers.

    Args:
        subject: Whose features.
        queries: What is looked for.
        train: Among which samples.
        layers: Blocks, counted from 1.
        setting: Pooling, device and precision.
        count: Neighbours of a query.
    """
    encoder = subject.encoder.to(setting.device)
    # One by one, so that a text's features do not hang on how far its neighbours in a batch are padded.
    options = (list(layers), setting.pooling, setting.bf16, subject.causal)
    query_features = [features_of_batches(encoder, [query.batch], *options) for query in queries]
    neighbors = []
    for layer, (features,) in layer_features(subject, [train], layers, setting):
        layer_queries = torch.cat([features[layer] for features in query_features]).to(setting.device)
        cosines, places = nearest(features, layer_queries, count)
        neighbors.append(Found(layer, cosines.cpu(), places.cpu()))
    return neighbors


def rows_of(
    subject: Subject, queries: Sequence[Query], layers: Sequence[Found], data: EvaluationData
) -> list[dict[str, Any]]:
    """A row for every neighbour, for JSON and CSV; texts are whole."""
    ids = data.train.sample_ids()
    rows = []
    for layer_neighbors in layers:
        for query, cosines, places in zip(queries, layer_neighbors.cosines, layer_neighbors.places, strict=True):
            neighbors = ids[places].tolist()
            texts: list[str | None] = [None] * len(neighbors)
            if subject.is_text:
                texts = [shown_text(sample) for sample in data.data_module.raw_samples("train", neighbors)]
            for rank, (place, cosine) in enumerate(zip(places.tolist(), cosines.tolist(), strict=True), start=1):
                label = None if data.train.labels is None else data.train.labels[place]
                rows.append(
                    {
                        "checkpoint": subject.name,
                        "step": subject.step,
                        "protocol": "neighbors",
                        "layer": layer_neighbors.layer,
                        "query": query.name,
                        "query_label": label_name(query.label, data),
                        "rank": rank,
                        "cosine": cosine,
                        "sample_id": neighbors[rank - 1],
                        "label": label_name(label, data),
                        **({"text": texts[rank - 1]} if subject.is_text else {}),
                    }
                )
    return rows


def shown_text(sample: dict[str, Any]) -> str:
    """A sample's text, or both of a pair."""
    pair = sample.get("text_pair")
    return sample["text"] if pair is None else f"{sample['text']} | {pair}"


def label_name(label: Tensor | None, data: EvaluationData) -> str | float | None:
    """A label as a person knows it."""
    if label is None:
        return None
    if data.task == "regression":
        return float(label)
    if data.task == "multi_label":
        return ", ".join(name for name, there in zip(data.classes, label.tolist(), strict=True) if there)
    return data.classes[int(label)]


def alike(query: str | float | None, neighbor: str | float | None) -> bool | None:
    """Whether a neighbour has the query's label; null where there are none, or numbers, which are never quite equal."""
    return query == neighbor if isinstance(query, str) else None
