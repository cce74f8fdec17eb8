"""Training on rows of several texts: the losses of the texts one by one, accumulated, resumed bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from text_corpus import fit, make_data, make_encoder, write_corpus

from lit_pretrain.modules import TextPretraining
from lit_pretrain.objectives import CausalLanguageModeling, MaskedLanguageModeling, ReplacedTokenDetection
from lit_pretrain.objectives.objective import clean_inputs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.json", documents=20)


def one_by_one(batch, pad_id=0):
    """The texts of a packed batch in padded rows, and of each of its tokens (row, place) there; (0, 0) of padding."""
    documents, ids = batch["documents"], batch["input_ids"]
    places, rows = torch.zeros_like(ids), torch.zeros_like(ids)
    texts = []
    for row in range(len(ids)):
        for number in range(int(documents[row].max()) + 1):
            own = documents[row] == number
            places[row, own], rows[row, own] = torch.arange(int(own.sum())), len(texts)
            texts.append(ids[row, own])
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return {"input_ids": padded, "attention_mask": mask, "padded": True}, rows, places


@pytest.fixture(scope="module")
def packed(corpus, tmp_path_factory):
    """A packed batch, its tokenizer, and an encoder with weights far from their start."""
    data = make_data(corpus, tmp_path_factory.mktemp("caches"), layout="segments", packing=True)
    data.setup("fit")
    torch.manual_seed(0)
    encoder = make_encoder(positions="rotary", ngrams=2, ngram_rows=50)
    encoder.set_vocabulary(data.tokenizer.vocabulary_size)
    encoder.embeddings.ngrams.set_keys(data.frequent_ngrams(2, 50))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return data.train_dataset.__getitems__([(0, index) for index in range(8)]), data.tokenizer, encoder.eval()


def test_losses_are_those_of_the_texts_one_by_one(packed):
    batch, tokenizer, encoder = packed
    assert int(batch["documents"].max()) > 0
    alone, rows, places = one_by_one(batch)
    generator = torch.Generator().manual_seed(0)
    causal = CausalLanguageModeling().eval()
    causal.build(encoder, tokenizer)
    found, expected = (causal(encoder, one, generator) for one in (batch, alone))
    assert found.statistics["loss"][1] == expected.statistics["loss"][1]
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)

    masked = MaskedLanguageModeling(0.3).eval()
    masked.build(encoder, tokenizer)
    made = masked.make_pass(batch, encoder, generator)
    found = masked.compute(encoder.forward_features(**made.inputs), made.targets, batch, encoder)
    corrupted = {**batch, "input_ids": made.inputs["input_ids"]}
    features = encoder.forward_features(**clean_inputs(one_by_one(corrupted)[0]))
    # The same tokens hidden: their features are brought to where they stand in the packed rows.
    expected = masked.compute(features[rows, places], made.targets, batch, encoder)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)

    replaced = ReplacedTokenDetection().eval()
    replaced.build(encoder, tokenizer)
    found, expected = (replaced.generate(clean_inputs(one), encoder) for one in (batch, alone))
    real = batch["attention_mask"]
    torch.testing.assert_close(found[real], expected[rows, places][real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", [MaskedLanguageModeling, ReplacedTokenDetection, CausalLanguageModeling])
def test_trained_and_resumed_bit_for_bit(corpus, tmp_path, objective):
    def train(directory, checkpoint=None):
        torch.manual_seed(0)
        module = TextPretraining(make_encoder(), [objective()], seed=0)
        saver = ModelCheckpoint(tmp_path / directory, "{step}", save_top_k=-1, every_n_train_steps=1, monitor=None)
        settings = {"callbacks": [saver], "enable_checkpointing": True, "accumulate_grad_batches": 2}
        settings |= {"limit_val_batches": 1, "val_check_interval": 4, "check_val_every_n_epoch": None}
        data = make_data(corpus, tmp_path, layout="segments", packing=True, batch_size=4)
        fit(module, data, checkpoint, **settings)
        assert module.examples(2)[objective.name]
        return module.state_dict()

    expected = train("straight")
    assert all(value.isfinite().all() for value in expected.values())
    if objective is CausalLanguageModeling:
        found = train("resumed", tmp_path / "straight" / "step=3.ckpt")
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
