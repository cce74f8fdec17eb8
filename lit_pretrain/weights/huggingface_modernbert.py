"""ModernBERT in Hugging Face's format, in and out: a directory of config.json and weights, as for BERT.

ModernBERT (Warner et al. 2024, arXiv:2412.13663) is pre-norm with GeGLU, rotary positions and local attention in two
layers of three; Ettin's encoders (Weller et al. 2025, arXiv:2507.11412) are such from 17 million to a billion
parameters. Names are those of `ModernBertModel` and `ModernBertForMaskedLM`, whose head comes in under the names of
BERT's: it is the same function, its layer's bias being zero where it has none.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.weights.files import write_checkpoint
from lit_pretrain.weights.huggingface_bert import (
    find_directory,
    head_beside,
    names_of,
    pretraining_heads_of,
    read_json,
    read_tensors_of,
)
from lit_pretrain.weights.public import PublicWeights

MODEL_TYPE = "modernbert"
# Theirs -> ours.
ACTIVATIONS = {"gelu": "geglu", "gelu_python": "geglu", "silu": "swiglu", "swish": "swiglu"}
# Where a config.json says nothing, as transformers takes it.
DEFAULTS = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "attention_dropout": 0.0,
    "classifier_pooling": "cls",
    "classifier_activation": "gelu",
}
GLOBAL, LOCAL = "full_attention", "sliding_attention"
# Of the rotation in layers of each kind: the name in older configs, and the value where nothing is said.
BASES = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
# Parts of our names -> theirs.
NAMES = (
    ("embeddings.token", "embeddings.tok_embeddings"),
    ("transformer.blocks.", "layers."),
    ("transformer.final_norm", "final_norm"),
    ("attention.query_key_value", "attn.Wqkv"),
    ("attention.projection", "attn.Wo"),
    ("attention_norm", "attn_norm"),
    ("feed_forward.expand", "mlp.Wi"),
    ("feed_forward.contract", "mlp.Wo"),
    ("feed_forward_norm", "mlp_norm"),
)
ENCODER = ("embeddings.", "layers.", "final_norm.")
# Of the head that predicts words: theirs -> BERT's.
WORDS = "cls.predictions."
HEAD_NAMES = {
    "head.dense.": f"{WORDS}transform.dense.",
    "head.norm.": f"{WORDS}transform.LayerNorm.",
    "decoder.": f"{WORDS}decoder.",
}


def format_name(ours: str) -> str:
    """The name in the format of a tensor of a `TextEncoder`."""
    for own_part, format_part in NAMES:
        ours = ours.replace(own_part, format_part)
    return ours


def load_weights(path_or_hub_name: str | Path) -> PublicWeights:
    """Read a ModernBERT of transformers' as settings and tensors of a `TextEncoder`.

    Args:
        path_or_hub_name: A directory with config.json and model.safetensors or pytorch_model.bin, or a name on the hub.

    Returns:
        With the head that predicts words, if there is one that reads the token table, and the classifier of an export
        of ours. The pooling is `classifier_pooling`, `cls` or `mean`.

    Raises:
        UserError: If a file is missing, or the config asks for what a `TextEncoder` does not compute.
    """
    directory = find_directory(path_or_hub_name)
    config = DEFAULTS | read_json(directory / "config.json")
    state = {name.removeprefix("model."): tensor for name, tensor in read_tensors_of(directory).items()}
    settings = settings_of_config(config, directory)
    heads = pretraining_heads(state, config)
    tensors = {name: state.pop(name) for name in list(state) if name.startswith(ENCODER)}
    # A decoder that is the token table is no tensor of its own.
    others = {berts_name(name) if heads else name for name in state}
    left_out = sorted(others - {f"{WORDS}decoder.weight", f"{WORDS}decoder.bias"})
    head = None
    if (separate := head_beside(directory)) is not None:
        head, settings["pooling"] = separate
    return PublicWeights(
        str(path_or_hub_name),
        settings,
        tensors,
        format_name=format_name,
        head=head,
        left_out=left_out,
        pretraining_heads=heads,
    )


def settings_of_config(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Settings of a `TextEncoder` of the shape that a config describes.

    Raises:
        UserError: If it does not compute something of it; the sentence says what.
    """
    activation, depth = config["hidden_activation"], config["num_hidden_layers"]
    every = global_every(config)
    bases = {kind: rotary_base(config, kind) for kind in BASES}
    lacking = [
        (f"the activation {activation}", activation not in ACTIVATIONS),
        ("biases in attention or feed-forward alone", config["attention_bias"] != config["mlp_bias"]),
        ("layer_types other than a full_attention first and every so many layers after it", every is None),
        ("scaled rotary positions", None in bases.values()),
    ]
    names = [name for name, present in lacking if present]
    if names:
        raise UserError(
            f"{directory}/config.json asks for {' and '.join(names)}, which TextEncoder lacks: give another ModernBERT."
        )
    local = every is not None and every > 1 and depth > 1
    return {
        "vocabulary_size": config["vocab_size"],
        "transformer": {
            "depth": depth,
            "width": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "feed_forward_width": config["intermediate_size"],
            "norm_order": "pre",
            "activation": ACTIVATIONS[activation],
            "norm_epsilon": config["norm_eps"],
            "norm_bias": config["norm_bias"],
            "bias": config["mlp_bias"],
            "dropout": max(config["embedding_dropout"], config["mlp_dropout"]),
            "attention_dropout": config["attention_dropout"],
            "first_attention_norm": False,
            "attention_window": config["local_attention"] // 2 if local else None,
            "global_every": every if local else 3,
        },
        "positions": "rotary",
        "max_positions": config["max_position_embeddings"],
        "segments": 0,
        "pooling": config["classifier_pooling"],
        "rotary_base": bases[GLOBAL],
        "local_rotary_base": bases[LOCAL] if local else None,
    }


def global_every(config: dict[str, Any]) -> int | None:
    """After how many layers a global one comes again, the first being one; null where another pattern is asked for."""
    kinds = config.get("layer_types")
    if kinds is None:
        return config["global_attn_every_n_layers"]
    places = [index for index, kind in enumerate(kinds) if kind == GLOBAL]
    every = places[1] if len(places) > 1 else max(2, len(kinds))
    return every if kinds == layer_types(len(kinds), every) else None


def layer_types(depth: int, every: int) -> list[str]:
    """What each layer is, by transformers' names."""
    return [LOCAL if index % every else GLOBAL for index in range(depth)]


def rotary_base(config: dict[str, Any], kind: str) -> float | None:
    """Base of the rotation in layers of a kind; null where it is scaled."""
    name, default = BASES[kind]
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    if config.get("rope_scaling") or parameters.get("rope_type", "default") != "default":
        return None
    base = parameters.get("rope_theta", config.get(name, default))
    # Local layers without a base have that of the others.
    return rotary_base(config, GLOBAL) if base is None and kind == LOCAL else base


def berts_name(name: str) -> str:
    """What BERT calls a tensor of a head, where it has such a one."""
    for theirs, berts in HEAD_NAMES.items():
        if name.startswith(theirs):
            return berts + name.removeprefix(theirs)
    return name


def pretraining_heads(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The head that predicts words by BERT's names; empty if there is none, or it is another function than ours.

    Args:
        state: Tensors by the names of `ModernBertForMaskedLM` without "model.".
        config: Of the directory.
    """
    table = state.get("embeddings.tok_embeddings.weight")
    heads = {berts_name(name): value for name, value in state.items() if name.startswith(tuple(HEAD_NAMES))}
    if table is None or f"{WORDS}transform.dense.weight" not in heads or config["classifier_activation"] != "gelu":
        return {}
    if (config.get("architectures") or [""])[0].endswith("ForSequenceClassification"):
        # The same layers, which read pooled features there.
        return {}
    heads.setdefault(f"{WORDS}transform.dense.bias", table.new_zeros(len(heads[f"{WORDS}transform.dense.weight"])))
    heads.setdefault(f"{WORDS}decoder.bias", table.new_zeros(len(table)))
    return pretraining_heads_of(heads | {"embeddings.word_embeddings.weight": table})


@torch.no_grad()
def save_weights(
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    directory: str | Path,
    heads: tuple[nn.Module, ...] = (),
) -> None:
    """Write an encoder (and the head that predicts words) as a directory that `transformers` loads.

    Args:
        settings: Of a `TextEncoder`, its Transformer's resolved.
        tensors: Its own, by our names.
        directory: Made if it does not exist.
        heads: At most one module whose `huggingface_names()` are those of BERT's word predictions.

    Raises:
        UserError: If the encoder has something that ModernBERT's format cannot hold; the sentence says what.
    """
    refuse_what_modernbert_lacks(settings)
    prefix = "model." if heads else ""
    state = {prefix + format_name(name): value for name, value in tensors.items()}
    for head in heads:
        own = head.state_dict()
        state |= {format_head_name(berts): own[ours] for ours, berts in names_of(head).items() if ours in own}
        state["decoder.weight"] = tensors["embeddings.token.weight"].clone()
    write_checkpoint(directory, state, config_of(settings, bool(heads)))


def format_head_name(berts: str) -> str:
    """What a tensor of BERT's word predictions is called here."""
    berts = berts.replace(f"{WORDS}bias", f"{WORDS}decoder.bias")
    for theirs, name in HEAD_NAMES.items():
        berts = berts.replace(name, theirs)
    return berts


def config_of(settings: dict[str, Any], with_heads: bool) -> dict[str, Any]:
    """The config.json of an encoder; its settings' Transformer is resolved."""
    transformer = settings["transformer"]
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    window = transformer["attention_window"]
    every = 1 if window is None else transformer["global_every"]
    bases = {
        GLOBAL: settings["rotary_base"],
        LOCAL: settings["local_rotary_base"] or settings["rotary_base"],
    }
    return {
        "architectures": ["ModernBertForMaskedLM" if with_heads else "ModernBertModel"],
        "model_type": MODEL_TYPE,
        "vocab_size": settings["vocabulary_size"],
        "hidden_size": transformer["width"],
        "num_hidden_layers": transformer["depth"],
        "num_attention_heads": transformer["heads"],
        "intermediate_size": transformer["feed_forward_width"],
        "hidden_activation": names[transformer["activation"]],
        "max_position_embeddings": settings["max_positions"],
        "norm_eps": transformer["norm_epsilon"],
        "norm_bias": transformer["norm_bias"],
        "attention_bias": transformer["bias"],
        "mlp_bias": transformer["bias"],
        "embedding_dropout": transformer["dropout"],
        "mlp_dropout": transformer["dropout"],
        "attention_dropout": transformer["attention_dropout"],
        "local_attention": DEFAULTS["local_attention"] if window is None else 2 * window,
        # As versions of transformers before and since 5 read them.
        "global_attn_every_n_layers": every,
        "layer_types": layer_types(transformer["depth"], every),
        **{BASES[kind][0]: base for kind, base in bases.items()},
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        # Of the head that predicts words, whose layer has a bias here.
        "classifier_bias": True,
        "classifier_activation": "gelu",
        "classifier_pooling": settings["pooling"],
        "decoder_bias": True,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        # Larger than a small vocabulary, as transformers takes them where nothing is said.
        **{f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")},
    }


def refuse_what_modernbert_lacks(settings: dict[str, Any]) -> None:
    """Raise a `UserError` naming whatever of an encoder Hugging Face's ModernBERT has no place for."""
    transformer, pooling = settings["transformer"], settings["pooling"]
    lacking = [
        (f"positions: {settings['positions']}", settings["positions"] != "rotary"),
        (f"segments: {settings['segments']}", settings["segments"] > 0),
        ("norm_order: post", transformer["norm_order"] != "pre"),
        (f"norm: {transformer['norm']}", transformer["norm"] != "layer"),
        ("first_attention_norm: true", transformer["first_attention_norm"]),
        ("final_norm: false", not transformer["final_norm"]),
        ("embedding_norm: false", not settings["embedding_norm"]),
        ("layer_scale", transformer["layer_scale"] is not None),
        ("query_key_norm: true", transformer["query_key_norm"]),
        ("causal: true", settings["causal"]),
        ("no block", transformer["depth"] == 0),
        ("no vocabulary", settings["vocabulary_size"] is None),
        (f"pooling: {pooling}", pooling not in ("cls", "mean")),
        (f"ngrams: {settings['ngrams']}", settings["ngrams"] != 1),
    ]
    names = [name for name, present in lacking if present]
    if names:
        raise UserError(
            f"Hugging Face's ModernBERT format cannot hold an encoder with {' and '.join(names)}: pretrain with "
            "ModernBERT's own settings if the weights must load there."
        )
