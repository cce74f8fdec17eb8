"""Texts in halves: the cut by hand, and what of a half is a word."""

import torch

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
