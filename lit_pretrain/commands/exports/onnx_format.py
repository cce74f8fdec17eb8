"""Any encoder as an ONNX graph (onnx.ai), with a classifier after fine-tuning; batch and text length are free.

A tower of a contrastive pretraining gives its embedding too, and both together are two graphs. Pictures go in as floats
in [0, 1]: the colours' mean and std are inside the graph. config.json says what else whoever runs it must know.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.commands.exports.card import Loading
from lit_pretrain.commands.exports.check import (
    Difference,
    compare,
    named_version,
    real_tokens,
    seeded_pictures,
    seeded_texts,
    worst_of_each,
)
from lit_pretrain.commands.exports.subject import EMBEDDINGS, Subject, answers
from lit_pretrain.required import required

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILE_NAME = "model.onnx"
# Of both towers, as transformers' exports call them.
FILE_NAMES = {"text": "text_model.onnx", "vision": "vision_model.onnx"}
# A file of ONNX holds 2 GiB at most; beyond, weights lie in a file beside it.
LARGEST_FILE = 1_900_000_000


def library() -> str:
    """What checks the export."""
    return named_version("onnxruntime")


class Graph(nn.Module):
    """Encoder, pooling and classifier as one function of tensors, in the order of `output_names`."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.encoder = subject.encoder
        self.head = subject.module.head if subject.has_classifier else None
        self.projection = None if subject.projection is None else subject.module.towers[subject.tower].projection
        self.facts = subject.facts
        self.causal = subject.causal

    def finish(self, tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, ...]:
        """What follows the tokens."""
        embedding = self.encoder.forward_head(tokens, attention_mask)
        if self.projection is not None:
            return tokens, embedding, functional.normalize(self.projection(embedding), dim=-1)
        if self.head is None:
            return tokens, embedding
        return *answers(self.head(embedding), required(self.facts)).values(), embedding


class TextGraph(Graph):
    """Of word pieces."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """All (B, N) int64."""
        encoder = self.encoder
        tokens = encoder.embeddings(input_ids, token_type_ids)
        # The encoder keeps its rotations by length, and here the length is a symbol.
        head_width = encoder.width // encoder.config.resolved_heads
        rotations = encoder.make_rotations(input_ids.shape[1], input_ids.device, head_width)
        mask = encoder.needed_mask(attention_mask)
        return self.finish(encoder.transformer(tokens, mask, self.causal, *rotations), attention_mask)


class PictureGraph(Graph):
    """Of pictures."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, S, S) in [0, 1]."""
        return self.finish(self.encoder.forward_features(self.encoder.normalize(images)), None)


def output_names(subject: Subject) -> list[str]:
    """What the graph gives, in its order; not "embedding", which is what the exporter calls a look-up inside."""
    if not subject.has_classifier:
        names = ["token_features", "pooled_embedding"]
        return names if subject.tower is None else [*names, EMBEDDINGS[subject.tower]]
    return (
        ["value", "pooled_embedding"]
        if required(subject.facts).task == "regression"
        else ["logits", "probabilities", "pooled_embedding"]
    )


def input_batches(subject: Subject) -> list[tuple[str, dict[str, Tensor]]]:
    """Seeded inputs of the graph and what they are; segments only where the encoder is given any."""
    if not subject.is_text:
        inputs = seeded_pictures(subject)
        return [(f"{len(inputs['images'])} random pictures of {subject.encoder.image_size} pixels", inputs)]
    batches = []
    for batch in seeded_texts(subject):
        inputs = {name: value for name, value in batch.inputs.items() if has_segments(subject) or "type" not in name}
        named = f"{len(batch.first)} seeded {'texts' if batch.second is None else 'pairs of texts'}"
        batches.append((f"{named} of up to {inputs['input_ids'].shape[1]} tokens with padding", inputs))
    return batches


def has_segments(subject: Subject) -> bool:
    """Whether the encoder tells the two texts of a pair apart; a tower is given one text."""
    return bool(subject.encoder.segments) and subject.tower is None


def graphs_of(subject: Subject) -> dict[str, Subject]:
    """What becomes a graph, by its file's name."""
    if subject.is_pair:
        return {FILE_NAMES[tower]: part for tower, part in subject.parts.items()}
    return {FILE_NAME: subject}


def write(subject: Subject, directory: Path) -> None:
    """Trace and write each graph, with the tokenizer of text and a config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    graphs = graphs_of(subject)
    for name, part in graphs.items():
        write_graph(part, directory / name)
    if subject.tokenizer is not None:
        subject.tokenizer.save(directory)
    configs = {name: graph_config(part) for name, part in graphs.items()}
    config = configs if subject.is_pair else configs[FILE_NAME]
    if subject.is_pair:
        config |= dict(zip(("logit_scale", "logit_bias"), subject.scale_and_bias, strict=True))
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_graph(subject: Subject, path: Path) -> None:
    """Trace one graph, whose free sizes are called batch and tokens."""
    # Other sizes than the check's, so that a size that was fixed by mistake is seen there.
    inputs = {name: value[:2] for name, value in input_batches(subject)[0][1].items()}
    axes = {0: "batch"}
    if subject.is_text:
        inputs = {name: value[:, : max(3, value.shape[1] // 2)] for name, value in inputs.items()}
        axes[1] = "tokens"
    graph = (TextGraph if subject.is_text else PictureGraph)(subject).eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    with quiet_exporter():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=output_names(subject),
            dynamic_shapes={name: axes for name in inputs},
            dynamo=True,
            verbose=False,
        )
        required(program).save(path, external_data=size > LARGEST_FILE)


def graph_config(subject: Subject) -> dict[str, Any]:
    """What config.json says of a graph."""
    return {
        "inputs": list(input_batches(subject)[0][1]),
        "outputs": output_names(subject),
        "task": required(subject.facts).task if subject.has_classifier else None,
        "labels": subject.labels,
        "maximum_length": subject.maximum_length if subject.is_text else None,
        "encoder_class": type(subject.encoder).__name__,
        "encoder": subject.encoder.settings(),
    }


def loading(subject: Subject) -> Loading:
    """How the export is used."""
    if subject.is_pair:
        parts = subject.parts
        lines = ["import numpy, onnxruntime", *text_code(parts["text"]), picture_code(parts["vision"])]
        for tower, inputs in (("text", "texts"), ("vision", "pictures")):
            lines += session_code(parts[tower], FILE_NAMES[tower], inputs)
        scale, bias = subject.scale_and_bias
        lines.append(f"logits = {scale:.6g} * image_embeds @ text_embeds.T" + (f" + {bias:.6g}" if bias else ""))
        return Loading("two ONNX graphs", "\n".join(lines), tuple(notes(subject)))
    reading = text_code(subject) if subject.is_text else [picture_code(subject)]
    lines = session_code(subject, FILE_NAME, "texts" if subject.is_text else "pictures")
    return Loading("ONNX graph", "\n".join(["import numpy, onnxruntime", *reading, *lines]), tuple(notes(subject)))


def text_code(subject: Subject) -> list[str]:
    """Lines that make inputs of texts, cut to what the graph takes."""
    tokenizer = required(subject.tokenizer)
    lines = ["from tokenizers import Tokenizer", 'tokenizer = Tokenizer.from_file("DIRECTORY/tokenizer.json")']
    if subject.maximum_length is not None:
        lines.append(f"tokenizer.enable_truncation({subject.maximum_length})")
    lines += [
        f"tokenizer.enable_padding(pad_id={tokenizer.pad_id}, pad_token={tokenizer.id_to_token(tokenizer.pad_id)!r})",
        'encoded = tokenizer.encode_batch(["one text", "and another"])',
        'texts = {"input_ids": [one.ids for one in encoded]}',
        'texts["attention_mask"] = [one.attention_mask for one in encoded]',
    ]
    if has_segments(subject):
        lines.append('texts["token_type_ids"] = [one.type_ids for one in encoded]')
    return [*lines, "texts = {name: numpy.array(rows, numpy.int64) for name, rows in texts.items()}"]


def picture_code(subject: Subject) -> str:
    """A line that makes inputs of no picture in particular."""
    encoder = subject.encoder
    shape = f"(1, {encoder.channels}, {encoder.image_size}, {encoder.image_size})"
    return f'pictures = {{"images": numpy.zeros({shape}, numpy.float32)}}  # in [0, 1]'


def session_code(subject: Subject, name: str, inputs: str) -> list[str]:
    """Lines that run a graph."""
    return [
        f'session = onnxruntime.InferenceSession("DIRECTORY/{name}")',
        f"{', '.join(output_names(subject))} = session.run(None, {inputs})",
    ]


def notes(subject: Subject) -> list[str]:
    """What does not show in the code."""
    sentences = []
    for part in graphs_of(subject).values():
        if part.is_text:
            sentences.append("Inputs of texts are (batch, tokens) int64, from tokenizer.json; both sizes are free.")
            if part.has_classifier and part.module.modality.truncation != "head":
                sentences.append(
                    "The code keeps a text's beginning; in fine-tuning its beginning and its end were kept."
                )
        else:
            sentences.append(
                "images are (batch, channels, size, size) float32 in [0, 1]: mean and standard deviation are inside."
            )
    if subject.objectives:
        sentences.append(f"Left out: the head of {' and of '.join(subject.objective_names)}.")
    return sentences


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Leave out what the exporter prints of its steps and of what it would like to have installed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check(subject: Subject, directory: Path) -> list[Difference]:
    """Run the graph in onnxruntime on batches of other sizes than it was traced with, and compare what it computes."""
    differences = []
    for name, part in graphs_of(subject).items():
        for difference in check_graph(part, directory / name):
            shared = not subject.is_pair or difference.output == EMBEDDINGS[required(part.tower)]
            differences.append(
                difference if shared else replace(difference, output=f"{part.tower} {difference.output}")
            )
    return differences


def check_graph(subject: Subject, path: Path) -> list[Difference]:
    """As `check`, of one graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    differences = []
    for named, inputs in input_batches(subject):
        ours = subject.features(inputs)
        names = output_names(subject)
        results = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        for name, result in zip(names, results, strict=True):
            output, expected = torch.from_numpy(numpy.array(result)), ours[name]
            if subject.is_text and name == "token_features":
                output, expected = real_tokens(output, inputs), real_tokens(expected, inputs)
            differences.append(compare(name, expected, output, named))
    return worst_of_each(differences)
