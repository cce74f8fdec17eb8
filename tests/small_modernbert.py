"""A small ModernBERT of transformers', with a tokenizer of its kind."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import ModernBertConfig, PreTrainedModel

from lit_pretrain.data.text.byte_pair_tokenizer import MODERNBERT_TOKENS, ModernBertTokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}


def modern_config(**settings: object) -> ModernBertConfig:
    """Of four layers, whose two local ones see 4 tokens to either side."""
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    defaults = {"vocab_size": 101, "local_attention": 8, "max_position_embeddings": 64, **SIZES, **ids}
    return ModernBertConfig(**defaults | settings)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their start, with features of about 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1.0
    return model.eval()


def modern_tokenizer() -> ModernBertTokenizer:
    """Of all bytes, a few words and several spaces; the special tokens come last, as in ModernBERT."""
    found = Tokenizer(BPE())
    found.normalizer, found.decoder = normalizers.NFC(), decoders.ByteLevel()
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<|padding|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    trainer = BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    found.train_from_iterator(["the low lower lowest newer"] * 5, trainer)
    found.add_tokens([AddedToken("   ", normalized=False)])
    found.add_special_tokens([AddedToken(name, lstrip=name == "[MASK]") for name in reversed(MODERNBERT_TOKENS)])
    return ModernBertTokenizer(found)


def save_modernbert(kind: type[PreTrainedModel], directory: Path, **settings: object) -> Path:
    """A directory as the hub has it, with more rows than pieces."""
    tokenizer = modern_tokenizer()
    special = {"pad_token_id": tokenizer.pad_id, "cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}
    config = modern_config(vocab_size=tokenizer.vocabulary_size + 3, **special | settings)
    randomise(kind(config)).save_pretrained(directory)
    tokenizer.save(directory)
    return directory
