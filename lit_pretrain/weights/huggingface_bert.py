"""BERT in Hugging Face's format, in and out: a directory of config.json and model.safetensors or pytorch_model.bin.

Names are those that `transformers` reads and writes for `BertModel` and `BertForPreTraining`; old checkpoints that call
a norm's gain and shift gamma and beta, and those with or without the `bert.` prefix, pooler and heads, are understood.
RoBERTa (Liu et al. 2019, arXiv:1907.11692) and DistilBERT (Sanh et al. 2019, arXiv:1910.01108) compute the same as a
BERT without segments, and come in as such; what goes out is always called BERT.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.weights.files import read_tensors, weight_files, write_checkpoint
from lit_pretrain.weights.public import LinearHead, PublicWeights

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}

# Ours -> theirs, for what stands outside the blocks.
STEM_NAMES = {
    "embeddings.token.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.segment.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
POOLER_NAMES = {"pooler.dense.weight": "pooler.dense.weight", "pooler.dense.bias": "pooler.dense.bias"}
# Ours -> theirs, inside a block; the fused projection is three matrices there.
BLOCK_NAMES = {
    "attention.query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.projection": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.expand": ("intermediate.dense",),
    "feed_forward.contract": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
# By transformers' model_type.
FAMILIES = {"bert": "BERT", "roberta": "RoBERTa", "distilbert": "DistilBERT"}
# Theirs -> BERT's.
DISTILBERT_CONFIG = {
    "n_layers": "num_hidden_layers",
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
DISTILBERT_NAMES = (
    (r"^transformer[.]layer[.]", "encoder.layer."),
    (r"attention[.]q_lin", "attention.self.query"),
    (r"attention[.]k_lin", "attention.self.key"),
    (r"attention[.]v_lin", "attention.self.value"),
    (r"attention[.]out_lin", "attention.output.dense"),
    (r"sa_layer_norm", "attention.output.LayerNorm"),
    (r"ffn[.]lin1", "intermediate.dense"),
    (r"ffn[.]lin2", "output.dense"),
    (r"output_layer_norm", "output.LayerNorm"),
    (r"^vocab_transform[.]", "cls.predictions.transform.dense."),
    (r"^vocab_layer_norm[.]", "cls.predictions.transform.LayerNorm."),
    (r"^vocab_projector[.]", "cls.predictions.decoder."),
)
ROBERTA_NAMES = (
    (r"^classifier[.]dense[.]", "pooler.dense."),
    (r"^classifier[.]out_proj[.]", "classifier."),
    (r"^lm_head[.]dense[.]", "cls.predictions.transform.dense."),
    (r"^lm_head[.]layer_norm[.]", "cls.predictions.transform.LayerNorm."),
    (r"^lm_head[.]bias$", "cls.predictions.bias"),
    (r"^lm_head[.]decoder[.]", "cls.predictions.decoder."),
)
# Of `BertForSequenceClassification`, on the pooler's output.
CLASSIFIER = ("classifier.weight", "classifier.bias")
# Where an export puts a classifier that reads something else.
CLASSIFIER_FOLDER = "classifier"
# In the place of our pooling `cls`, an export writes a pooler of this multiple of the identity, which tanh does not
# change in fp32. A power of two, so that multiplying by it is exact; (20 s)^2 / 3 is below fp32's last bit.
SMALL = 2.0**-16
# Ours -> theirs.
PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# Of files of weights, whole or cut into several.
STEMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
# Written by transformers beside the weights, or derived from others: nothing of ours reads them.
IGNORED = {"embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def load_weights(path_or_hub_name: str | Path) -> PublicWeights:
    """Read a BERT, a RoBERTa or a DistilBERT of transformers' as settings and tensors of a `TextEncoder`.

    Args:
        path_or_hub_name: A directory with config.json and model.safetensors or pytorch_model.bin, or a name on the hub.

    Returns:
        With the classifier on pooled features, if there is one, and the names of other heads. The pooling is `pooler`
        if the weights have BERT's pooler, else `mean`.

    Raises:
        UserError: If a file is missing, the model is not a BERT, or its tensors do not match its config.
    """
    directory = find_directory(path_or_hub_name)
    config, state = read_config(directory), read_tensors_of(directory)
    family = family_of(config, state, directory)
    config, state = as_bert(family, config, unprefixed(state), directory)
    head, state = take_classifier(config, state, directory)
    settings = settings_of_config(config, "pooler.dense.weight" in state)
    plan = format_names(settings)
    needed = {name for names in plan.values() for name in names}
    missing, others = sorted(needed - state.keys()), state.keys() - needed - IGNORED
    unexpected = sorted(name for name in others if name.partition(".")[0] in ("embeddings", "encoder", "pooler"))
    if missing or unexpected:
        raise UserError(
            f"The weights in {directory} are not those of the {FAMILIES[family]} that its config.json describes: "
            f"missing {missing or 'none'}, unexpected {unexpected or 'none'}."
        )
    tensors = {ours: joined([state[name] for name in names]) for ours, names in plan.items()}
    if head is not None and head.weight.shape[1:] != (settings["transformer"]["width"],):
        others = others | set(head.names)
        head = None
    pooling = settings["pooling"]
    if head is not None and is_small_identity(tensors):
        head, pooling = replace(head, weight=head.weight * SMALL), "cls"
    if head is None and (separate := head_beside(directory)) is not None:
        head, pooling = separate
    if pooling != settings["pooling"]:
        # None that an export puts a classifier beside has weights.
        settings["pooling"] = pooling
        tensors = {name: value for name, value in tensors.items() if name not in POOLER_NAMES}
    return PublicWeights(
        str(path_or_hub_name),
        settings,
        tensors,
        head=head,
        left_out=sorted(others),
        pretraining_heads=pretraining_heads_of(state),
    )


def pretraining_heads_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The heads of a `BertForPreTraining`, a `BertForMaskedLM` and the like, and the pooler that one of them reads.

    Args:
        state: Tensors by BERT's names without "bert.".

    Returns:
        The same, without word predictions whose decoder is not the embeddings', as ours is.
    """
    heads = {name: value for name, value in state.items() if name.startswith(("cls.", "pooler.dense."))}
    words = "cls.predictions."
    # Tied to each other; of two names for one tensor a file may have either.
    bias = heads.pop(f"{words}decoder.bias", None)
    if bias is not None:
        heads.setdefault(f"{words}bias", bias)
    decoder, embeddings = heads.pop(f"{words}decoder.weight", None), state.get("embeddings.word_embeddings.weight")
    if decoder is not None and (embeddings is None or not torch.equal(decoder, embeddings)):
        heads = {name: value for name, value in heads.items() if not name.startswith(words)}
    return heads


def format_names(settings: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names in the format of every tensor of an encoder, by ours; of several, which are one here, in their order."""
    names = STEM_NAMES | (POOLER_NAMES if settings["pooling"] == "pooler" else {})
    plan: dict[str, tuple[str, ...]] = {
        ours: (theirs,) for ours, theirs in names.items() if settings["segments"] or "segment" not in ours
    }
    for index in range(settings["transformer"]["depth"]):
        for ours, parts in BLOCK_NAMES.items():
            for kind in ("weight", "bias"):
                plan[f"transformer.blocks.{index}.{ours}.{kind}"] = tuple(
                    f"encoder.layer.{index}.{part}.{kind}" for part in parts
                )
    return plan


def joined(tensors: list[Tensor]) -> Tensor:
    """Tensors in one, along their rows."""
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def take_classifier(
    config: dict, state: dict[str, Tensor], directory: Path
) -> tuple[LinearHead | None, dict[str, Tensor]]:
    """The classifier of a `BertForSequenceClassification`, which alone reads pooled features, and the other tensors."""
    kinds = config.get("architectures") or [""]
    names = [name for name in CLASSIFIER if name in state]
    if len(names) != len(CLASSIFIER) or "pooler.dense.weight" not in state:
        return None, state
    if kinds[0] and not kinds[0].endswith("ForSequenceClassification"):
        return None, state
    weight, bias = (state[name].float() for name in CLASSIFIER)
    others = {name: value for name, value in state.items() if name not in CLASSIFIER}
    return LinearHead(weight, bias, *labels_of(config, len(weight)), names=CLASSIFIER), others


def labels_of(config: dict, count: int) -> tuple[tuple[str, ...], str | None]:
    """Names of the classes, empty if transformers made them up, and our name of the task, null if it is not told."""
    tasks = {theirs: ours for ours, theirs in PROBLEMS.items()}
    task = tasks.get(config.get("problem_type", ""))
    named = config.get("id2label") or {}
    classes = tuple(str(named.get(str(index), "")) for index in range(count))
    if task == "regression" or len(named) != count or all(re.fullmatch(r"LABEL_\d+|", name) for name in classes):
        classes = ()
    if task is None and count == 1:
        # As transformers takes it.
        task = "regression"
    return classes, task


def head_beside(directory: Path) -> tuple[LinearHead, str] | None:
    """A classifier that our export had to put beside an encoder, in a folder of its own, and the pooling it reads."""
    folder = directory / CLASSIFIER_FOLDER
    if not (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file():
        return None
    tensors = read_tensors(folder / "model.safetensors")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weight, bias, pooling = tensors["weight"], tensors["bias"], config["pooling"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder} is no classifier of an export ({error}): export it again.") from error
    names = tuple(f"{CLASSIFIER_FOLDER}/{name}" for name in ("weight", "bias"))
    return LinearHead(weight, bias, *labels_of(config, len(weight)), names=names), pooling


def is_small_identity(tensors: dict[str, Tensor]) -> bool:
    """Whether the pooler is the one that an export puts in the place of none; see `SMALL`."""
    if "pooler.dense.weight" not in tensors or tensors["pooler.dense.bias"].any():
        return False
    weight = tensors["pooler.dense.weight"].float()
    return torch.equal(weight, SMALL * torch.eye(len(weight)))


@torch.no_grad()
def save_weights(
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    directory: str | Path,
    heads: tuple[nn.Module, ...] = (),
) -> None:
    """Write an encoder (and pretraining heads) as a directory that `transformers` loads.

    Args:
        settings: Of a `TextEncoder`, its Transformer's resolved: post-norm, with learned positions and biases, as BERT
            is; without segments there are two of zeros.
        tensors: Its own, by our names.
        directory: Made if it does not exist.
        heads: Modules with `huggingface_names()` (ours -> theirs), saved beside the encoder.

    Raises:
        UserError: If the encoder has something that BERT's format cannot hold; the sentence says what.
    """
    refuse_what_bert_lacks(settings)
    if not settings["segments"]:
        # Two rows of zeros, so that whoever tells texts of a pair apart may do so.
        rows = tensors["embeddings.token.weight"].new_zeros(2, settings["transformer"]["width"])
        settings, tensors = settings | {"segments": 2}, tensors | {"embeddings.segment.weight": rows}
    prefix = "bert." if heads else ""
    state: dict[str, Tensor] = {}
    for ours, names in format_names(settings).items():
        state |= {prefix + name: part for name, part in zip(names, tensors[ours].chunk(len(names)), strict=True)}
    for head in heads:
        own = head.state_dict()
        state |= {name: own[ours] for ours, name in names_of(head).items()}
    if "cls.predictions.bias" in state:
        state["cls.predictions.decoder.weight"] = tensors["embeddings.token.weight"].clone()
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    write_checkpoint(directory, state, config_of(settings, bool(heads)))


def names_of(head: nn.Module) -> dict[str, str]:
    """Ours -> theirs, of a module with `huggingface_names()`."""
    named: Any = head
    return named.huggingface_names()


def find_directory(path_or_hub_name: str | Path) -> Path:
    """The local directory of a checkpoint: the path itself, or the hub's snapshot."""
    path = Path(path_or_hub_name)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or str(path_or_hub_name).startswith("."):
        raise UserError(
            f"There is no directory of BERT weights at {path}: give one with config.json and model.safetensors."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from lit_pretrain.hub import hub_answers

    reachable = hub_answers()
    try:
        weights = [f"{stem}{part}{suffix}" for stem, suffix in STEMS for part in ("", "-*-of-*")]
        indices = [f"{stem}{suffix}.index.json" for stem, suffix in STEMS]
        patterns = ["config.json", *weights, *indices, "vocab.txt", "tokenizer*.json", "preprocessor_config.json"]
        # The hub's client would try for a minute before it looks into its cache.
        return Path(snapshot_download(str(path_or_hub_name), allow_patterns=patterns, local_files_only=not reachable))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = type(error).__name__ if reachable else "it cannot be reached, and no copy is in its cache"
        raise UserError(
            f"'{path_or_hub_name}' is neither a directory here nor a model that the Hugging Face hub gave "
            f"({reason}): check the name or the network, or download it and give its directory."
        ) from error


def read_json(path: Path) -> dict:
    """A directory's config.json."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: give a directory in Hugging Face's BERT format.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download the checkpoint again.") from error


def read_config(directory: Path) -> dict:
    """The directory's config.json, if it describes a BERT."""
    path = directory / "config.json"
    config = read_json(path)
    if config.get("model_type", "bert") not in FAMILIES:
        raise UserError(
            f"{path} describes a '{config['model_type']}', not a BERT, a RoBERTa, a DistilBERT or a ModernBERT, which "
            "TextEncoder loads: give one of these."
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{path} asks for {config['position_embedding_type']} positions, which BERT's encoder lacks.")
    return config


def read_tensors_of(directory: Path) -> dict[str, Tensor]:
    """A directory's tensors by their own names."""
    files = weight_files(directory)
    if not files:
        raise UserError(f"{directory} has neither model.safetensors nor pytorch_model.bin: give a complete checkpoint.")
    return {name: tensor for path in files for name, tensor in read_tensors(path).items()}


def unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of today's bare model."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(f"^({'|'.join(FAMILIES)})[.]", "", name).replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return renamed


def family_of(config: dict, state: dict[str, Tensor], directory: Path) -> str:
    """Which of `FAMILIES` it is: as the config says, else as the tensors' names and shapes do.

    Raises:
        UserError: If they say nothing, or another than the config.
    """
    prefixes = {name.partition(".")[0] for name in state} & FAMILIES.keys()
    kinds = {name for name in FAMILIES for kind in config.get("architectures") or () if kind.lower().startswith(name)}
    families = {config["model_type"]} if "model_type" in config else kinds or prefixes
    if not families:
        segments = unprefixed(state).get("embeddings.token_type_embeddings.weight")
        if any(".q_lin." in name for name in state):
            families = {"distilbert"}
        elif any(name.startswith("lm_head.") for name in state):
            families = {"roberta"}
        elif any(name.startswith("cls.") for name in state) or (segments is not None and len(segments) > 1):
            # RoBERTa has one segment.
            families = {"bert"}
    if len(families | prefixes) != 1:
        contents = (
            f"{' and '.join(sorted(families | prefixes))} at once"
            if families | prefixes
            else "neither BERT nor RoBERTa"
        )
        raise UserError(
            f"{directory} tells of {contents} by its config.json and its tensors' names: write the right "
            '"model_type" into config.json, or download the checkpoint again.'
        )
    return families.pop()


def as_bert(family: str, config: dict, state: dict[str, Tensor], directory: Path) -> tuple[dict, dict[str, Tensor]]:
    """The config and the tensors of a BERT that computes the same.

    RoBERTa counts positions from the padding's id on, of which the first rows are never read, and its one segment is
    part of every position; its classifier has a pooler of its own. DistilBERT has no segments, and other names.
    """
    if family == "distilbert":
        config = {theirs: config[name] for name, theirs in DISTILBERT_CONFIG.items() if name in config} | {
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-12,
            "architectures": config.get("architectures"),
        }
        for pattern, replacement in DISTILBERT_NAMES:
            state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    elif family == "roberta":
        first = config.get("pad_token_id", 1) + 1
        config = config | {
            "max_position_embeddings": config["max_position_embeddings"] - first,
            "type_vocab_size": 0,
            "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        }
        position, segment = (f"embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
        missing = [name for name in (position, segment) if name not in state]
        if missing:
            raise UserError(f"The weights in {directory} are not those of a RoBERTa: missing {', '.join(missing)}.")
        state = dict(state)
        state[position] = state[position][first:] + state.pop(segment)[0]
        for pattern, replacement in ROBERTA_NAMES:
            state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return config, state


def settings_of_config(config: dict, has_pooler: bool) -> dict[str, Any]:
    """Settings of a `TextEncoder` of the shape that a Hugging Face BERT config describes."""
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"config.json asks for the activation '{activation}': ours are {', '.join(ACTIVATIONS)}.")
    return {
        "vocabulary_size": config["vocab_size"],
        "transformer": {
            "depth": config["num_hidden_layers"],
            "width": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "feed_forward_width": config["intermediate_size"],
            "norm_order": "post",
            "activation": ACTIVATIONS[activation],
            "norm_epsilon": config.get("layer_norm_eps", 1e-12),
            "dropout": config.get("hidden_dropout_prob", 0.1),
            "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        },
        "max_positions": config.get("max_position_embeddings", 512),
        "segments": config.get("type_vocab_size", 2),
        "pooling": "pooler" if has_pooler else "mean",
        "causal": config.get("is_decoder", False),
    }


def config_of(settings: dict[str, Any], with_heads: bool) -> dict:
    """The config.json of an encoder; its settings' Transformer is resolved."""
    transformer = settings["transformer"]
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["BertForPreTraining" if with_heads else "BertModel"],
        "model_type": "bert",
        "vocab_size": settings["vocabulary_size"],
        "hidden_size": transformer["width"],
        "num_hidden_layers": transformer["depth"],
        "num_attention_heads": transformer["heads"],
        "intermediate_size": transformer["feed_forward_width"],
        "hidden_act": names[transformer["activation"]],
        "hidden_dropout_prob": transformer["dropout"],
        "attention_probs_dropout_prob": transformer["attention_dropout"],
        "max_position_embeddings": settings["max_positions"],
        "type_vocab_size": settings["segments"],
        "is_decoder": settings["causal"],
        "layer_norm_eps": transformer["norm_epsilon"],
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }


def refuse_what_bert_lacks(settings: dict[str, Any]) -> None:
    """Raise a `UserError` naming whatever of an encoder Hugging Face's BERT has no place for."""
    transformer, pooling = settings["transformer"], settings["pooling"]
    lacking = [
        ("positions: rotary", settings["positions"] != "learned"),
        ("norm_order: pre", transformer["norm_order"] != "post"),
        ("bias: false", not transformer["bias"]),
        ("layer_scale", transformer["layer_scale"] is not None),
        ("query_key_norm: true", transformer["query_key_norm"]),
        (f"norm: {transformer['norm']}", transformer["norm"] != "layer"),
        ("norm_bias: false", not transformer["norm_bias"]),
        (f"attention_window: {transformer['attention_window']}", transformer["attention_window"] is not None),
        (f"activation: {transformer['activation']}", transformer["activation"] not in ACTIVATIONS.values()),
        ("embedding_norm: false", not settings["embedding_norm"]),
        ("no vocabulary", settings["vocabulary_size"] is None),
        (f"pooling: {pooling}", pooling in ("map", "end_of_text")),
        (f"ngrams: {settings['ngrams']}", settings["ngrams"] != 1),
    ]
    names = [name for name, present in lacking if present]
    if names:
        raise UserError(
            f"Hugging Face's BERT format cannot hold an encoder with {' and '.join(names)}: pretrain with BERT's own "
            "settings if the weights must load there."
        )
