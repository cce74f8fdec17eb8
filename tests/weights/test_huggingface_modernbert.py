"""ModernBERT's weights in and out, against transformers, to 1e-5 in fp32; and its parts in other models."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_modernbert import SIZES, modern_config, randomise
from transformers import (
    EuroBertConfig,
    EuroBertModel,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
)

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules.objective_heads import take_heads
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import MaskedLanguageModeling
from lit_pretrain.weights.huggingface_text import load_weights

VOCABULARY = SimpleNamespace(
    vocabulary_size=101, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * 101
)
VARIANTS = {
    "as published": {},
    "biases, SiLU, mean": {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "hidden_activation": "silu",
        "classifier_pooling": "mean",
        "local_attention": 6,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    "no window, no decoder bias": {"layer_types": ["full_attention"] * 4, "decoder_bias": False},
}


def texts(length: int) -> dict[str, torch.Tensor]:
    """Five texts of different lengths, padded."""
    generator = torch.Generator().manual_seed(length)
    lengths = torch.tensor([length, length // 2, 1, length - 1, 3])
    mask = torch.arange(length) < lengths[:, None]
    return {
        "input_ids": torch.randint(5, 101, (5, length), generator=generator),
        "attention_mask": mask.long(),
    }


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5, relative to values of about 1."""
    assert theirs.abs().mean() > 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_both_ways_with_the_head_that_predicts_words(variant: str, tmp_path: Path) -> None:
    theirs = randomise(ModernBertForMaskedLM(modern_config(**VARIANTS[variant])))
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = TextEncoder.from_pretrained(tmp_path / "theirs")
    head = MaskedLanguageModeling()
    head.build(encoder, VOCABULARY)
    start = take_heads([head], load_starting_point(str(tmp_path / "theirs")))
    assert start.taken_heads == (head.name,) and not start.left_out and not start.fresh_heads
    assert encoder.pooling == theirs.config.classifier_pooling and encoder.max_positions == 64
    encoder.save_pretrained(tmp_path / "ours", (head,))
    back, report = ModernBertForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    again = TextEncoder.from_pretrained(tmp_path / "ours")
    assert again.settings() == encoder.settings()
    # Shorter than a window, longer, and cut into blocks; 60 is no multiple of a block.
    for length in (4, 10, 60):
        inputs = texts(length)
        real = inputs["attention_mask"].bool()
        expected = theirs(**inputs, output_hidden_states=True)
        features = encoder.forward_features(**inputs)
        assert features.isfinite().all()
        close(features[real], expected.hidden_states[-1][real])
        close(head.head.logits(features, encoder.embeddings.token.weight)[real], expected.logits[real])
        close(back.eval()(**inputs).logits[real], expected.logits[real])
        close(again.forward_features(**inputs)[real], features[real])
        inputs.pop("attention_mask")
        close(encoder.forward_features(**inputs), theirs.model(**inputs).last_hidden_state)


@torch.no_grad()
def test_a_bare_model_of_an_older_version(tmp_path: Path) -> None:
    theirs = randomise(ModernBertModel(modern_config(rope_parameters=None, global_rope_theta=999.0)))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["rope_parameters"], content["layer_types"]
    path.write_text(json.dumps(content | {"global_rope_theta": 999.0, "global_attn_every_n_layers": 3}))
    inputs = texts(30)
    real, encoder = inputs["attention_mask"].bool(), TextEncoder.from_pretrained(tmp_path)
    assert (encoder.rotary_base, encoder.local_rotary_base) == (999.0, 10_000.0)
    close(encoder.forward_features(**inputs)[real], theirs(**inputs).last_hidden_state[real])
    # Local layers without a base of their own have the others'.
    path.write_text(json.dumps(content | {"global_rope_theta": 999.0, "local_rope_theta": None}))
    assert TextEncoder.from_pretrained(tmp_path).local_rotary_base == 999.0


def test_heads_that_are_others_are_left_out(tmp_path: Path) -> None:
    theirs = randomise(ModernBertForSequenceClassification(modern_config(num_labels=2)))
    theirs.save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    assert weights.pretraining_heads == {} and weights.head is None
    assert weights.left_out == ["classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight"]
    # A decoder of its own is no head of ours.
    randomise(ModernBertForMaskedLM(modern_config(tie_word_embeddings=False))).save_pretrained(tmp_path)
    assert load_weights(tmp_path).pretraining_heads.keys().isdisjoint({"cls.predictions.bias"})


def test_what_cannot_come_in_or_go_out_is_one_sentence(tmp_path: Path) -> None:
    ModernBertModel(modern_config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for change, reason in (
        ({"hidden_activation": "relu"}, "asks for the activation relu, which"),
        ({"mlp_bias": True}, "asks for biases in attention or feed-forward alone"),
        ({"layer_types": ["sliding_attention"] * 4}, "asks for layer_types other than a full_attention first"),
        ({"layer_types": [f"{kind}_attention" for kind in ("full", "full", "sliding", "full")]}, "layer_types other"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "asks for scaled rotary positions"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=reason):
            TextEncoder.from_pretrained(tmp_path)
    path.write_text(json.dumps(content | {"num_hidden_layers": 5, "layer_types": None}))
    with pytest.raises(UserError, match=r"missing layers\.4\.attn\.Wo\.weight, "):
        TextEncoder.from_pretrained(tmp_path)
    modern = TransformerConfig(width=16, heads=2, norm_order="pre", activation="geglu")
    with pytest.raises(
        UserError, match=r"ModernBERT format cannot hold .* positions: learned and segments: 2 and first"
    ):
        TextEncoder(9, transformer=modern).save_pretrained(tmp_path / "out")


@torch.no_grad()
def test_rms_norms_and_swiglu_are_those_of_eurobert() -> None:
    theirs = randomise(EuroBertModel(EuroBertConfig(vocab_size=101, pad_token_id=0, **SIZES)))
    transformer = TransformerConfig(
        4, 32, 2, 24, norm_order="pre", activation="swiglu", norm="rms", norm_epsilon=1e-5, bias=False
    )
    encoder = TextEncoder(101, transformer=transformer, positions="rotary", segments=0, embedding_norm=False)
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("layers.")}
    tensors = {
        "embeddings.token.weight": state["embed_tokens.weight"],
        "transformer.final_norm.weight": state["norm.weight"],
    }
    for index, layer in enumerate(theirs.layers):
        attention, feed_forward = layer.self_attn, layer.mlp
        parts = {
            "attention_norm": layer.input_layernorm.weight,
            "attention.query_key_value": torch.cat(
                [part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            ),
            "attention.projection": attention.o_proj.weight,
            "feed_forward_norm": layer.post_attention_layernorm.weight,
            "feed_forward.expand": torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight]),
            "feed_forward.contract": feed_forward.down_proj.weight,
        }
        tensors |= {f"transformer.blocks.{index}.{name}.weight": value for name, value in parts.items()}
    encoder.load_state_dict(tensors)
    inputs = texts(19)
    real = inputs["attention_mask"].bool()
    close(encoder.forward_features(**inputs)[real], theirs(**inputs).last_hidden_state[real])
