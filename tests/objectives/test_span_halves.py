"""Texts in halves: the cut by hand, what of a half is a word, and what is hidden."""

import math

import pytest
import torch

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.objectives import BagOfNgrams, BagOfWords, ContrastiveSpans, compute_objectives
from lit_pretrain.objectives.masking import visible_tokens
from lit_pretrain.objectives.objective import passes_run
from lit_pretrain.objectives.span_halves import cut_in_halves, halves_pass


def test_a_cut_by_hand():
    ids = torch.tensor([[2, 11, 12, 13, 14, 15, 3, 0], [2, 11, 3, 0, 0, 0, 0, 0], [2, 11, 12, 13, 14, 15, 16, 3]])
    found, mask = cut_in_halves(ids, torch.tensor([[1] * 7 + [0], [1] * 3 + [0] * 5, [1] * 8]))
    spans = [row[kept.bool()].tolist() for row, kept in zip(found, mask, strict=True)]
    assert spans[:3] == [[2, 11, 12, 3], [2, 11, 3], [2, 11, 12, 13, 3]]
    assert spans[3:] == [[2, 13, 14, 15, 3], [2, 11, 3], [2, 14, 15, 16, 3]]
    assert found.shape == (6, 5)


def test_every_token_is_in_one_half(texts):
    found, mask = cut_in_halves(texts["input_ids"], texts["attention_mask"])
    first, second = (
        [row[kept.bool()][1:-1].tolist() for row, kept in zip(ids, part, strict=True)]
        for ids, part in zip(found.chunk(2), mask.chunk(2), strict=True)
    )
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        length = int(texts["attention_mask"][row].sum())
        assert one + other == texts["input_ids"][row, 1 : length - 1].tolist()
        assert 0 <= len(other) - len(one) <= 1


def test_words_are_all_but_the_special_tokens(texts):
    one = halves_pass(texts | {"token_type_ids": torch.ones_like(texts["input_ids"])}, torch.Generator())
    ids, mask, words = (one.targets[name] for name in ("ids", "mask", "words"))
    assert torch.equal(one.inputs["input_ids"], ids) and not one.inputs["token_type_ids"].any()
    for row in range(len(ids)):
        text = ids[row][mask[row].bool()].tolist()
        assert ids[row][words[row].bool()].tolist() == text[1:-1]


def test_objectives_that_share_a_pass_hide_the_same_tokens(texts):
    generator = torch.Generator().manual_seed(3)
    first = halves_pass(texts, generator, 0.5)
    torch.rand(7, generator=generator)
    second, all_seen = halves_pass(texts, generator, 0.5), halves_pass(texts, generator)
    other = halves_pass(texts, torch.Generator().manual_seed(4), 0.5)
    mask, everything, seen = first.targets["mask"], all_seen.targets["mask"], first.inputs["positions"]
    assert torch.equal(mask, second.targets["mask"]) and torch.equal(mask, first.inputs["attention_mask"])
    assert torch.equal(seen, second.inputs["positions"]) and not torch.equal(seen, other.inputs["positions"])
    # What is hidden is tied to no other draw of the same generator: not to those with which masking begins.
    tied = visible_tokens(everything, 0.5, torch.Generator().manual_seed(3))
    assert not torch.equal(seen, tied.indices)
    # The other half is asked for all its words, [CLS] is always seen, and hidden tokens are not computed.
    assert torch.equal(first.targets["words"], all_seen.targets["words"])
    assert everything.gather(1, seen)[mask.bool()].all() and not seen[:, 0].any() and mask[:, 0].all()
    assert mask.sum(dim=1).tolist() == [math.ceil(0.5 * count) for count in everything.sum(dim=1).tolist()]
    assert mask.shape[1] == math.ceil(0.5 * everything.shape[1])


def test_tokens_are_hidden_in_training_only_and_shares_tell_passes_apart(texts):
    objectives = [ContrastiveSpans(token_dropout=0.5), BagOfWords(token_dropout=0.5), BagOfWords()]
    assert len(passes_run(objectives[:2])) == 1 and len(passes_run(objectives)) == 2
    masks = []
    for training in (True, False):
        made = [one.train(training).make_pass(texts, None, torch.Generator().manual_seed(0)) for one in objectives]
        masks.append([one.targets["mask"] for one in made])
    (spans, words, clean), evaluated = masks
    assert torch.equal(spans, words) and not torch.equal(spans, clean)
    assert all(torch.equal(one, clean) for one in evaluated)
    assert objectives[0].settings()["init_args"]["token_dropout"] == 0.5


@pytest.mark.parametrize("make", [ContrastiveSpans, BagOfWords, BagOfNgrams])
def test_a_share_that_hides_everything_is_refused(make):
    with pytest.raises(UserError, match=rf"{make.__name__}.token_dropout is 1.0: give a share from 0 to below 1."):
        make(token_dropout=1.0)


def test_halves_of_a_shared_pass_are_averaged_once(vocabulary, texts, monkeypatch):
    torch.manual_seed(0)
    encoder = TextEncoder(vocabulary.vocabulary_size, transformer=TransformerConfig(depth=1, width=16, heads=2))
    together = [ContrastiveSpans(token_dropout=0.4), BagOfWords(token_dropout=0.4)]
    apart, shapes = BagOfWords(), []
    for objective in (*together, apart):
        objective.build(encoder, vocabulary)
        compute = objective.compute
        monkeypatch.setattr(
            objective, "compute", lambda features, *rest, f=compute: shapes.append(features.ndim) or f(features, *rest)
        )
    losses = compute_objectives(encoder, together, texts, torch.Generator().manual_seed(1))
    assert shapes == [2, 2]
    for objective in together:
        alone = objective(encoder, texts, torch.Generator().manual_seed(1)).loss
        torch.testing.assert_close(losses[objective.name].loss, alone)
    # Where somebody reads the tokens, or hides others, each averages for itself.
    shapes.clear()
    compute_objectives(encoder, [together[0], apart], texts, torch.Generator().manual_seed(1))
    assert shapes == [3, 3]
