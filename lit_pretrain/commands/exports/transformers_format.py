"""Text in Hugging Face's format: a BERT or a ModernBERT that `transformers` loads, with its tokenizer and heads.

A classifier goes into `BertForSequenceClassification`, which reads tanh(W h + b) of the first token. That is our
pooling `pooler`; our `cls` (the first token as it is) is the same with W a small multiple s of the identity and the
classifier divided by s, for tanh(x) = x - x^3 / 3 + ... is x to the last bit of fp32 where x is small enough. A mean
over tokens has no place there: then the encoder is a `BertModel`, and the classifier lies beside it in a folder. So it
does beside a `ModernBertModel`, for ModernBERT's classifiers have a layer, GELU and a norm before them.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor

from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.commands.exports.card import Loading
from lit_pretrain.commands.exports.check import (
    Difference,
    ExportMismatchError,
    TextBatch,
    compare,
    named_version,
    quiet_transformers,
    real_tokens,
    seeded_texts,
    worst_of_each,
)
from lit_pretrain.commands.exports.subject import EMBEDDINGS, Subject
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import CausalLanguageModeling, MaskedLanguageModeling, NextSentencePrediction
from lit_pretrain.required import required
from lit_pretrain.weights.files import write_checkpoint
from lit_pretrain.weights.huggingface_bert import CLASSIFIER_FOLDER, PROBLEMS, SMALL
from lit_pretrain.weights.huggingface_text import is_modern

PACKAGES = ("transformers",)
# Where the projection of a tower of a contrastive pretraining lies, of which BertModel has none.
PROJECTION_FOLDER = "projection"


def library() -> str:
    """What checks the export."""
    return named_version("transformers")


def goes_out_modern(subject: Subject) -> bool:
    """Whether it is a ModernBERT there, and no BERT."""
    return is_modern(subject.encoder.settings())


def heads_of(subject: Subject) -> list[Any]:
    """The pretraining heads that the classes in transformers have a place for."""
    kinds: list[type] = [NextSentencePrediction]
    if goes_out_modern(subject):
        kinds = [MaskedLanguageModeling]
    elif subject.encoder.config.activation == "gelu":
        # transformers gives the head the encoder's activation, and ours is always GELU.
        kinds.append(CausalLanguageModeling if subject.causal else MaskedLanguageModeling)
    # Kinds of these with a head of their own, as replaced token detection has, name no tensors.
    heads: list[Any] = [objective for objective in subject.objectives if isinstance(objective, tuple(kinds))]
    return [head for head in heads if head.huggingface_names()]


def architecture_of(subject: Subject) -> str:
    """The class of transformers' that loads the export."""
    if goes_out_modern(subject):
        return "ModernBertForMaskedLM" if heads_of(subject) else "ModernBertModel"
    if subject.has_classifier:
        fits = subject.encoder.pooling in ("pooler", "cls")
        return "BertForSequenceClassification" if fits else "BertModel"
    heads = heads_of(subject)
    if any(isinstance(head, CausalLanguageModeling) for head in heads):
        return "BertLMHeadModel"
    words, order = (
        any(isinstance(head, kind) for head in heads) for kind in (MaskedLanguageModeling, NextSentencePrediction)
    )
    if words:
        return "BertForPreTraining" if order else "BertForMaskedLM"
    return "BertForNextSentencePrediction" if order else "BertModel"


def write(subject: Subject, directory: Path) -> None:
    """Write weights, config and tokenizer.

    Raises:
        UserError: If BERT has no place for something of the encoder; the sentence says for what.
    """
    modern = goes_out_modern(subject)
    if modern and subject.causal:
        raise UserError(
            "Hugging Face's ModernBERT has no place for tokens that see only those before them, as all objectives here "
            "asked for; --format onnx holds any encoder."
        )
    try:
        subject.encoder.save_pretrained(directory, tuple(heads_of(subject)))
    except UserError as error:
        raise UserError(f"{str(error).partition(':')[0]}{reason(error)}; --format onnx holds any encoder.") from error
    architecture = architecture_of(subject)
    config, tensors = read(directory)
    config["architectures"] = [architecture]
    tokenizer = required(subject.tokenizer)
    config["pad_token_id"] = tokenizer.pad_id
    if modern:
        config |= {"cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}
        config |= {"bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    else:
        config["is_decoder"] = subject.causal
    if subject.has_classifier:
        weight, bias = subject.classifier()
        if architecture == "BertForSequenceClassification":
            tensors = {f"bert.{name}": value for name, value in tensors.items()}
            tensors |= classifier_tensors(subject, weight, bias)
            config |= label_settings(subject)
        else:
            settings = label_settings(subject) | {"pooling": subject.encoder.pooling}
            write_checkpoint(directory / CLASSIFIER_FOLDER, {"weight": weight, "bias": bias}, settings)
    if subject.projection is not None:
        settings = {"pooling": subject.encoder.pooling, "embedding_width": len(subject.projection)}
        write_checkpoint(directory / PROJECTION_FOLDER, {"weight": subject.projection}, settings)
    write_checkpoint(directory, tensors, config)
    tokenizer.save(directory)
    path = directory / "tokenizer_config.json"
    limit = {"model_max_length": subject.maximum_length}
    path.write_text(json.dumps(json.loads(path.read_text()) | limit, indent=2) + "\n")


def reason(error: UserError) -> str:
    """What follows the first colon of a refusal, up to its advice."""
    return "".join(f":{part}" for part in str(error).split(":")[1:-1])


def read(directory: Path) -> tuple[dict, dict[str, Tensor]]:
    """A directory's config and tensors."""
    return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")


def classifier_tensors(subject: Subject, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The classifier, and before it for the pooling `cls` a pooler that changes nothing."""
    if subject.encoder.pooling == "pooler":
        return {"classifier.weight": weight, "classifier.bias": bias}
    width = subject.encoder.width
    return {
        "bert.pooler.dense.weight": SMALL * torch.eye(width),
        "bert.pooler.dense.bias": torch.zeros(width),
        "classifier.weight": weight / SMALL,
        "classifier.bias": bias,
    }


def label_settings(subject: Subject) -> dict:
    """What transformers' config.json says of labels."""
    return {
        "problem_type": PROBLEMS[required(subject.facts).task],
        "id2label": {str(index): name for index, name in enumerate(subject.labels)},
        "label2id": {name: index for index, name in enumerate(subject.labels)},
    }


def is_bare(architecture: str) -> bool:
    """Whether a class has no head."""
    return architecture in ("BertModel", "ModernBertModel")


def has_pooler(subject: Subject) -> bool:
    """Whether the encoder has BERT's pooler."""
    return subject.encoder.pooling == "pooler"


def loading(subject: Subject) -> Loading:
    """How the export is used."""
    architecture = architecture_of(subject)
    lines = [
        'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")',
        'inputs = tokenizer(["one text", "and another"], padding=True, truncation=True, return_tensors="pt")',
    ]
    if is_bare(architecture):
        pooler = ", add_pooling_layer=False" if architecture == "BertModel" and not has_pooler(subject) else ""
        lines.append(f'model = AutoModel.from_pretrained("DIRECTORY"{pooler})')
        imported = "AutoModel"
    else:
        lines.append(f'model = {architecture}.from_pretrained("DIRECTORY")')
        imported = architecture
    code = "\n".join([f"from transformers import AutoTokenizer, {imported}", *lines, "outputs = model(**inputs)"])
    return Loading(architecture, code, tuple(notes(subject, architecture)))


def notes(subject: Subject, architecture: str) -> list[str]:
    """What does not show in the code."""
    pooling, sentences = subject.encoder.pooling, []
    how = {
        "mean": "the mean of the real tokens' last_hidden_state",
        "cls": "the first token's last_hidden_state",
        "pooler": "pooler_output",
    }
    sentences.append(f"The embedding of a text is {how[pooling]}.")
    if subject.has_classifier and is_bare(architecture):
        theirs = (
            "ModernBERT's classes in transformers what another layer makes of it"
            if goes_out_modern(subject)
            else "BERT's classes in transformers the first token only"
        )
        sentences.append(
            f"The classifier reads the pooling '{pooling}', and {theirs}, so its weight and bias lie in "
            f"{CLASSIFIER_FOLDER}/model.safetensors, its labels in {CLASSIFIER_FOLDER}/config.json, and logits = "
            "embedding @ weight.T + bias; --format onnx has all in one."
        )
    if architecture == "BertForSequenceClassification" and pooling == "cls":
        sentences.append(
            "The classifier reads the first token as it is: the pooler is a small multiple of the identity, which "
            "BERT's tanh does not change in fp32; train on from the checkpoint rather than from this."
        )
    if subject.projection is not None:
        sentences.append(
            f"Texts and pictures meet in {EMBEDDINGS['text']} = normalize(embedding @ weight.T), whose weight lies in "
            f"{PROJECTION_FOLDER}/model.safetensors; --format onnx has all in one."
        )
    if subject.causal:
        sentences.append("A token sees only those before it (is_decoder: true), as in its pretraining.")
    left_out = [type(objective).__name__ for objective in subject.objectives if objective not in heads_of(subject)]
    if left_out:
        family = "ModernBERT" if goes_out_modern(subject) else "BERT"
        sentences.append(f"Left out, for {family} has no place for it: the head of {' and of '.join(left_out)}.")
    return sentences


# -- the check


@torch.no_grad()
def check(subject: Subject, directory: Path) -> list[Difference]:
    """Load the export in transformers, with its tokenizer, and compare what it computes.

    Raises:
        ExportMismatchError: If it does not load whole, or its tokenizer gives other pieces.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        settings = {} if goes_out_modern(subject) else {"add_pooling_layer": has_pooler(subject)}
        bare = load(directory, "AutoModel", **settings)
        architecture = architecture_of(subject)
        whole = None if is_bare(architecture) else load(directory, architecture)
    differences = []
    for batch in seeded_texts(subject):
        inputs = dict(tokenizer(batch.first, batch.second, padding=True, return_tensors="pt"))
        compare_pieces(batch, inputs, with_segments=subject.encoder.segments > 0)
        named = f"{len(batch.first)} seeded {'texts' if batch.second is None else 'pairs of texts'}"
        named += f" of up to {inputs['input_ids'].shape[1]} tokens with padding"
        ours, theirs = subject.features(batch.inputs), bare(**inputs)
        tokens = theirs.last_hidden_state
        pairs = {
            "token_features": (real_tokens(ours["token_features"], inputs), real_tokens(tokens, inputs)),
            "pooled_embedding": (
                ours["pooled_embedding"],
                pooled(subject, tokens, theirs.get("pooler_output"), inputs),
            ),
        }
        if subject.projection is not None:
            weight = load_file(directory / PROJECTION_FOLDER / "model.safetensors")["weight"]
            shared = functional.normalize(pairs["pooled_embedding"][1] @ weight.T, dim=-1)
            pairs[EMBEDDINGS["text"]] = (ours[EMBEDDINGS["text"]], shared)
        if whole is not None:
            pairs |= head_outputs(subject, ours, whole(**inputs), inputs)
        elif subject.has_classifier:
            head = load_file(directory / CLASSIFIER_FOLDER / "model.safetensors")
            pairs[subject.answer] = (
                ours[subject.answer],
                pairs["pooled_embedding"][1] @ head["weight"].T + head["bias"],
            )
        differences += [compare(name, *pair, named) for name, pair in pairs.items()]
    return worst_of_each(differences)


def load(directory: Path, class_name: str, **settings: object) -> torch.nn.Module:
    """A model of transformers' from the export, in fp32; every tensor that it needs must be there."""
    import transformers

    model, report = getattr(transformers, class_name).from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32, **settings
    )
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise ExportMismatchError(f"transformers' {class_name} does not find {', '.join(lacking[:5])} in the export.")
    return model.eval()


def compare_pieces(batch: TextBatch, inputs: dict[str, Tensor], with_segments: bool) -> None:
    """See that the exported tokenizer makes of the texts what the checkpoint's does."""
    real = batch.inputs["attention_mask"].bool()
    for name, ours in batch.inputs.items():
        if name == "token_type_ids" and not with_segments:
            continue
        # With what they are filled up, nothing reads.
        if name not in inputs or ours.shape != inputs[name].shape or not torch.equal(ours[real], inputs[name][real]):
            raise ExportMismatchError(
                f"The tokenizer that transformers loads gives other {name} than the checkpoint's: nothing was exported."
            )


def pooled(subject: Subject, tokens: Tensor, pooler_output: Tensor | None, inputs: dict[str, Tensor]) -> Tensor:
    """The embedding (B, D) from what transformers gives, in the way that the card says."""
    if subject.encoder.pooling == "pooler":
        return required(pooler_output)
    return tokens[:, 0] if subject.encoder.pooling == "cls" else mean_pool(tokens, inputs["attention_mask"])


def head_outputs(
    subject: Subject, ours: dict[str, Tensor], theirs: Any, inputs: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the heads give here and there, by name."""
    if subject.has_classifier:
        return {subject.answer: (ours[subject.answer], theirs.logits)}
    outputs, tokens = {}, ours["token_features"]
    heads = heads_of(subject)
    for head in heads:
        if not isinstance(head, NextSentencePrediction):
            words = theirs.prediction_logits if len(heads) == 2 else theirs.logits
            expected = head.head.logits(real_tokens(tokens, inputs), subject.encoder.embeddings.token.weight)
            outputs["word_logits"] = (expected, real_tokens(words, inputs))
        else:
            following = theirs.seq_relationship_logits if len(heads) == 2 else theirs.logits
            outputs["next_sentence_logits"] = (head.logits(tokens, subject.encoder), following)
    return outputs
