"""What an encoder whose tokens see no later ones cannot learn or tell is refused, before any data is read."""

from pathlib import Path

import pytest
import torch
from labelled_texts import TOKENIZER
from small_training import training_of, write_config

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, TextReplay
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.objective_mix import any_objectives
from lit_pretrain.objectives import (
    BagOfNgrams,
    BagOfWords,
    CausalLanguageModeling,
    ContrastiveSpans,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
)

SMALL = TransformerConfig(depth=1, width=16, heads=2)
REFUSED = {
    "asks for hidden words": MaskedLanguageModeling,
    "^ReplacedTokenDetection asks": ReplacedTokenDetection,
    "reads the first token": NextSentencePrediction,
    **{
        f"{kind.__name__}.token_dropout hides tokens by a mask": lambda kind=kind: kind(token_dropout=0.1)
        for kind in (ContrastiveSpans, BagOfWords, BagOfNgrams)
    },
}


def causal_encoder(**settings: object) -> TextEncoder:
    """A small one that knows the words of the made-up texts."""
    return TextEncoder(TOKENIZER.vocabulary_size, transformer=SMALL, max_positions=32, causal=True, **settings)


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_a_first_token_that_sees_nothing_is_not_pooled(pooling: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"pooling: {pooling} reads the first token, which sees no other"):
        causal_encoder(pooling=pooling)
    # Older checkpoints have them, and load: what they were trained to may be read off all tokens.
    settings = causal_encoder().settings() | {"pooling": pooling}
    encoder = TextEncoder.from_settings(settings)
    assert encoder.causal and encoder.settings() == settings
    one, other = encoder(torch.tensor([[2, 7, 8, 3]])), encoder(torch.tensor([[2, 9, 6, 3]]))
    assert torch.equal(one, other)
    # Where their features would be taken, they are refused.
    encoder.save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    given = {"pooling": "cls"} if pooling == "cls" else {}
    with pytest.raises(UserError, match=f"pooling: {pooling} reads the first token"):
        FineTuning(init_from=str(tmp_path), **given)
    assert FineTuning(init_from=str(tmp_path), pooling="mean").encoder.causal
    if pooling == "pooler":
        vision = VisionEncoder(8, 4, transformer=VisionTransformerConfig(depth=1, width=16, heads=2))
        with pytest.raises(UserError, match="pooling: pooler reads the first token"):
            ContrastivePretraining(vision_encoder=vision, text=TowerConfig(init_from=str(tmp_path)))


@pytest.mark.parametrize("sentence", REFUSED)
def test_objectives_that_look_both_ways_or_hide_tokens(sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TextPretraining(causal_encoder(ngrams=2), [CausalLanguageModeling(), REFUSED[sentence]()])
    with pytest.raises(UserError, match=sentence):
        ContrastivePretraining(
            causal_encoder(pooling="end_of_text"),
            VisionEncoder(8, 4, transformer=VisionTransformerConfig(depth=1, width=16, heads=2)),
            text_replay=TextReplay([REFUSED[sentence]()]),
        )
    encoder = causal_encoder(ngrams=2)
    TextPretraining(encoder, [CausalLanguageModeling(), ContrastiveSpans(), BagOfWords(), BagOfNgrams()])
    with any_objectives(encoder):
        TextPretraining(encoder, [REFUSED[sentence]()])
    assert encoder.causal


def test_a_config_is_told_in_one_sentence_before_its_data_is_looked_for(tmp_path: Path, capsys) -> None:
    data = {"class_path": "DocumentDataModule", "init_args": {"path": str(tmp_path / "nothing.jsonl")}}
    for settings, objective, sentence in (
        ({"pooling": "cls"}, "CausalLanguageModeling", "all texts would have the same features"),
        ({}, "MaskedLanguageModeling", "asks for hidden words by what stands on both sides"),
    ):
        encoder = {"class_path": "TextEncoder", "init_args": {"causal": True, "max_positions": 32} | settings}
        model = {"encoder": encoder, "objectives": [{"class_path": objective}]}
        config = training_of({"class_path": "TextPretraining", "init_args": model}, data, {"logger": False})
        assert main(["fit", "--config", str(write_config(tmp_path / "config.yaml", config))]) == 2
        told = capsys.readouterr().err
        assert sentence in " ".join(told.split()) and "Traceback" not in told and "nothing.jsonl" not in told
