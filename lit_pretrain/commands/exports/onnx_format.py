"""Any encoder as an ONNX graph (onnx.ai), with a classifier after fine-tuning; batch and text length are free.

Pictures go in as floats in [0, 1]: the colours' mean and std are inside the graph. config.json says what else whoever
runs it must know.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from lit_pretrain.backbone.rotary import rotation_for
from lit_pretrain.commands.exports.card import Loading
from lit_pretrain.commands.exports.checking import (
    Difference,
    compare,
    named_version,
    real_tokens,
    seeded_pictures,
    seeded_texts,
    worst_of_each,
)
from lit_pretrain.commands.exports.subject import Subject, answers

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILE_NAME = "model.onnx"
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
        self.facts = subject.facts
        self.causal = subject.causal

    def finish(self, tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, ...]:
        """What follows the tokens."""
        embedding = self.encoder.forward_head(tokens, attention_mask)
        if self.head is None:
            return tokens, embedding
        return *answers(self.head(embedding), self.facts).values(), embedding


class TextGraph(Graph):
    """Of word pieces."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """All (B, N) int64."""
        encoder = self.encoder
        tokens, rotation = encoder.embeddings(input_ids, token_type_ids), None
        if encoder.positions == "rotary":
            # The encoder keeps its rotations by length, and here the length is a symbol.
            positions = torch.arange(input_ids.shape[1])
            rotation = rotation_for(positions, encoder.width // encoder.config.resolved_heads, encoder.rotary_base)
        mask = encoder.needed_mask(attention_mask)
        return self.finish(encoder.transformer(tokens, mask, self.causal, rotation), attention_mask)


class PictureGraph(Graph):
    """Of pictures."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, S, S) in [0, 1]."""
        return self.finish(self.encoder.forward_features(self.encoder.normalize(images)), None)


def output_names(subject: Subject) -> list[str]:
    """What the graph gives, in its order; not "embedding", which is what the exporter calls a look-up inside."""
    if not subject.has_classifier:
        return ["token_features", "pooled_embedding"]
    return (
        ["value", "pooled_embedding"]
        if subject.facts.task == "regression"
        else ["logits", "probabilities", "pooled_embedding"]
    )


def input_batches(subject: Subject) -> list[tuple[str, dict[str, Tensor]]]:
    """Seeded inputs of the graph and what they are; segments only where the encoder has any."""
    if not subject.is_text:
        inputs = seeded_pictures(subject)
        return [(f"{len(inputs['images'])} random pictures of {subject.encoder.image_size} pixels", inputs)]
    batches = []
    for batch in seeded_texts(subject):
        inputs = {name: value for name, value in batch.inputs.items() if subject.encoder.segments or "type" not in name}
        named = f"{len(batch.first)} seeded {'texts' if batch.second is None else 'pairs of texts'}"
        batches.append((f"{named} of up to {inputs['input_ids'].shape[1]} tokens with padding", inputs))
    return batches


def write(subject: Subject, directory: Path) -> None:
    """Trace the graph and write it, with the tokenizer of text and a config.json."""
    from torch.export import Dim

    # Other sizes than the check's, so that a size that was fixed by mistake is seen there.
    inputs = {name: value[:2] for name, value in input_batches(subject)[0][1].items()}
    axes: dict[int, object] = {0: Dim.DYNAMIC}
    if subject.is_text:
        inputs = {name: value[:, : max(3, value.shape[1] // 2)] for name, value in inputs.items()}
        axes[1] = Dim.DYNAMIC
    graph = (TextGraph if subject.is_text else PictureGraph)(subject).eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    directory.mkdir(parents=True, exist_ok=True)
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
        program.save(directory / FILE_NAME, external_data=size > LARGEST_FILE)
    if subject.tokenizer is not None:
        subject.tokenizer.save(directory)
    config = {
        "inputs": list(inputs),
        "outputs": output_names(subject),
        "task": subject.facts.task if subject.has_classifier else None,
        "labels": subject.labels,
        "encoder_class": type(subject.encoder).__name__,
        "encoder": subject.encoder.settings(),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def loading(subject: Subject) -> Loading:
    """How the export is used."""
    given = "input_ids=..., attention_mask=..., token_type_ids=..." if subject.is_text else "images=..."
    if subject.is_text and not subject.encoder.segments:
        given = given.rpartition(",")[0]
    code = (
        "import onnxruntime\n"
        f'session = onnxruntime.InferenceSession("DIRECTORY/{FILE_NAME}")\n'
        f"{', '.join(output_names(subject))} = session.run(None, dict({given}))"
    )
    if subject.is_text:
        told = ["Inputs are (batch, tokens) int64, from tokenizer.json (the tokenizers library); both sizes are free."]
    else:
        told = ["images are (batch, channels, size, size) float32 in [0, 1]: mean and standard deviation are inside."]
    if subject.objectives:
        told.append(f"Left out: the head of {' and of '.join(subject.objective_names)}.")
    return Loading("ONNX graph", code, tuple(told))


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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(directory / FILE_NAME, options, providers=["CPUExecutionProvider"])
    differences = []
    for named, inputs in input_batches(subject):
        ours = subject.features(inputs)
        names = output_names(subject)
        results = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        for name, result in zip(names, results, strict=True):
            theirs, mine = torch.from_numpy(numpy.array(result)), ours[name]
            if subject.is_text and name == "token_features":
                theirs, mine = real_tokens(theirs, inputs), real_tokens(mine, inputs)
            differences.append(compare(name, mine, theirs, named))
    return worst_of_each(differences)
