"""Rows of several texts: best fit by hand, every text once, how full, a data module's batches, what is refused."""

import numpy
import pytest
import torch
from text_corpus import make_data, make_encoder, write_corpus

from lit_pretrain.data.text.packing import contents, pack
from lit_pretrain.errors import UserError
from lit_pretrain.modules.objective_mix import check_on_texts
from lit_pretrain.objectives import BagOfWords, MaskedLanguageModeling


def test_best_fit_by_hand():
    # Texts of 7, 6, 4, 3, 3 and 2 tokens in rows of 10: 7 + 3, 6 + 4, 3 + 2.
    rows = contents(numpy.bincount([7, 6, 4, 3, 3, 2], minlength=11))
    assert sorted(rows) == [(1, ((3, 1), (2, 1))), (1, ((6, 1), (4, 1))), (1, ((7, 1), (3, 1)))]
    # Five of 4 go two a row, and the last one leaves room for one of 5.
    rows = contents(numpy.bincount([5, 4, 4, 4, 4, 4], minlength=11))
    assert sorted(rows) == [(1, ((5, 1), (4, 1))), (2, ((4, 2),))]


@pytest.mark.parametrize("longest", [24, 61, 128])
def test_every_text_once_and_hardly_any_padding(longest):
    generator = numpy.random.default_rng(longest)
    lengths = numpy.minimum(generator.lognormal(numpy.log(longest / 8), 0.7, 3000).astype(int) + 1, longest - 2)
    starts = numpy.cumsum(lengths) - lengths
    pieces = numpy.stack([starts, starts + lengths], axis=1)
    rows = pack(pieces, longest, 2, numpy.random.default_rng(1))
    assert sorted(rows.pieces.tolist()) == pieces.tolist()
    used = [int((rows.row(index)[:, 1] - rows.row(index)[:, 0] + 2).sum()) for index in range(len(rows))]
    assert max(used) <= longest and min(used) > 0
    assert rows.filled == sum(used) / (longest * len(rows)) > 0.97
    # Texts of all lengths are among the first rows too, and another draw arranges them in another way.
    first = numpy.diff(rows.pieces[: rows.offsets[50]])
    assert first.mean() == pytest.approx(lengths.mean(), rel=0.3)
    again, other = (pack(pieces, longest, 2, numpy.random.default_rng(seed)) for seed in (1, 2))
    assert again.pieces.tolist() == rows.pieces.tolist() != other.pieces.tolist()


def test_batches_of_a_data_module(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "texts.json", documents=30)
    data = make_data(corpus, tmp_path, layout="segments", packing=True, sequence_length=48)
    data.setup("fit")
    dataset, cache, tokenizer = data.train_dataset, data.cache, data.tokenizer
    packed = f"packed into {len(dataset)} sequences of 48 tokens"
    assert packed in (printed := capsys.readouterr().err)
    lengths = numpy.diff(cache.document_offsets()) + 2
    longer = f"{(lengths > 48).sum()} of {len(lengths)} documents are longer than that and are cut into several texts"
    assert longer in printed and f"data.sequence_length {lengths.max()} keeps all of them whole" in printed
    assert "documents" in data.batch_fields and 0.9 < data.describe()["packed_share"] <= 1
    for epoch in range(2):
        found = []
        for index in range(dataset.population(epoch)):
            batch = dataset.__getitems__([(epoch, index)])
            ids, documents = batch["input_ids"][0], batch["documents"][0]
            assert torch.equal(batch["attention_mask"][0], documents >= 0)
            for number in range(int(documents.max()) + 1):
                first, *text, last = ids[documents == number].tolist()
                assert (first, last) == (tokenizer.cls_id, tokenizer.sep_id)
                found += text
            assert set(ids[documents < 0].tolist()) <= {tokenizer.pad_id}
        offsets = cache.document_offsets()
        texts = [cache.tokens[offsets[i] : offsets[i + 1]].tolist() for i in dataset.documents]
        assert sorted(found) == sorted(sum(texts, []))
    whole = make_data(corpus, tmp_path, layout="segments", sequence_length=48)
    whole.setup("fit")
    assert len(dataset) < 0.85 * len(whole.train_dataset)


def test_refused(tmp_path):
    corpus = write_corpus(tmp_path / "texts.json", documents=3)
    with pytest.raises(UserError, match="data.layout to segments"):
        make_data(corpus, tmp_path, packing=True)
    data = make_data(corpus, tmp_path, layout="segments", packing=True)
    check_on_texts([MaskedLanguageModeling()], make_encoder(), data)
    with pytest.raises(UserError, match="BagOfWords takes a sequence for one text"):
        check_on_texts([BagOfWords()], make_encoder(), data)
