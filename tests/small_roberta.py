"""A small tokenizer of RoBERTa's kind."""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from lit_pretrain.data.text.byte_pair_tokenizer import ROBERTA_TOKENS, RobertaTokenizer


def small_roberta_tokenizer() -> RobertaTokenizer:
    """Of a few words and all bytes."""
    found = Tokenizer(BPE(unk_token="<unk>"))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = [*ROBERTA_TOKENS[:4], *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found.train_from_iterator(
        ["the low lower lowest newer"] * 5, BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    found.add_special_tokens(list(ROBERTA_TOKENS))
    return RobertaTokenizer(found)
