"""A general corpus beside one's own: the ratio, the order, pairs that do not mix, losses on both, exact resuming."""

from itertools import pairwise

import numpy
import pytest
import torch
from labelled_texts import SPELLING
from small_training import small_config, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.data import DocumentDataModule, JointDataModule
from lit_pretrain.data.loading import REPLAYED
from lit_pretrain.data.text.replay import ReplayConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.trainer import Trainer

QUIET = {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False, "logger": False}
NAME = "--trainer.logger.init_args.run_name"


def write_words(path, word, documents):
    """Documents of one word each sequence of which is told from any other by the number before it."""
    texts = [
        " ".join(f"{word} {' '.join(f'{document:02d}{sentence:02d}')} {word}." for sentence in range(7))
        for document in range(documents)
    ]
    path.write_text("\n\n".join(texts))
    return str(path)


@pytest.fixture
def make_mixed(tmp_path):
    """A data module of an own and a general corpus, each of one word, set up."""
    SPELLING.save(tmp_path / "tokenizer")
    own = write_words(tmp_path / "own.txt", "senate", 20)
    general = write_words(tmp_path / "general.txt", "army", 40)

    def make(share=0.3, **settings):
        common = {"tokenizer": str(tmp_path / "tokenizer"), "cache_directory": str(tmp_path / "caches"), "seed": 1}
        common |= {"sequence_length": 24, "batch_size": 4, "validation_share": 0.2}
        data = DocumentDataModule(own, replay=ReplayConfig(general, share), **common | settings)
        data.setup("fit")
        return data

    return make


def has_word(ids, word):
    """Whether each row has a corpus's word; a short one may have neither's."""
    return (ids == SPELLING.tokenizer.token_to_id(word)).any(dim=1)


@pytest.mark.parametrize("layout", ["segments", "sentence_pairs"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_an_epoch_has_both_in_their_ratio(make_mixed, layout, share):
    data = make_mixed(share, layout=layout)
    dataset, own = data.train_dataset, data.own_dataset
    assert len(dataset) == pytest.approx(len(own) / (1 - share), abs=1)
    for epoch in (0, 3):
        # All of it at once, and each sequence alone: the same, of one corpus each.
        keys = [(epoch, index) for index in range(dataset.population(epoch))]
        batch = dataset.__getitems__(keys)
        own_rows, general_rows = (has_word(batch["input_ids"], word) for word in ("senate", "army"))
        assert len(keys) == own.population(epoch) + dataset.replayed
        assert not own_rows[-dataset.replayed :].any() and not general_rows[: -dataset.replayed].any()
        assert own_rows.float().mean() > 0.9 * own.population(epoch) / len(keys)
        assert general_rows.float().mean() > 0.9 * dataset.replayed / len(keys)
        assert batch["sample_id"].tolist() == list(range(len(keys)))
        order = numpy.random.default_rng(0).permutation(len(keys))[:9]
        some = dataset.__getitems__([keys[index] for index in order])
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(some[name], batch[name][torch.from_numpy(order)])
        if layout == "segments":
            # Every token of the own corpus is in the epoch once.
            alone = own.__getitems__([(epoch, index) for index in range(own.population(epoch))])
            assert torch.equal(batch["input_ids"][: len(alone["input_ids"])], alone["input_ids"])
    # Processes share an epoch's batches out.
    sampler = data._train_sampler()
    seen = [key for rank in (0, 1) for index in range(5) for key in sampler.batch(1, index, rank, 2)]
    assert len(set(seen)) == len(seen) == 40
    first = data.batch_at(1, 2)["input_ids"]
    assert torch.equal(first, make_mixed(share, layout=layout).batch_at(1, 2)["input_ids"])


def test_the_general_corpus_goes_on_from_epoch_to_epoch(make_mixed):
    dataset = make_mixed(0.3).train_dataset
    cycles, places = zip(*(dataset.places(epoch, numpy.arange(dataset.replayed)) for epoch in range(12)), strict=True)
    cycles, places = numpy.concatenate(cycles), numpy.concatenate(places)
    assert all(step in ((0, 1), (1, 1 - dataset.size)) for step in pairwise_steps(cycles, places))
    assert cycles.max() > 0
    for cycle in range(cycles.max()):
        assert sorted(places[cycles == cycle]) == list(range(dataset.size))
        assert sorted(dataset.order_of(cycle))[: dataset.size // 2] != dataset.order_of(cycle).tolist()


def pairwise_steps(cycles, places):
    """From each place to the next."""
    together = list(zip(cycles.tolist(), places.tolist(), strict=True))
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(together)]


def test_validation_is_of_one_after_the_other(make_mixed):
    data = make_mixed()
    loaders = data.val_dataloader()
    batches = [batch for batch, _, _ in loaders]
    marked = [bool(batch.get(REPLAYED)) for batch in batches]
    assert marked == sorted(marked) and set(marked) == {False, True}
    for batch, replayed in zip(batches, marked, strict=True):
        words = [bool(has_word(batch["input_ids"], word).any()) for word in ("senate", "army")]
        assert words == [not replayed, replayed]
    facts = data.describe()
    assert (
        facts["replay_source"].endswith("general.txt") and facts["data_fingerprint"] != facts["replay_data_fingerprint"]
    )
    # The own part is as it is without the other.
    alone = DocumentDataModule.val_dataloader(make_mixed())
    assert torch.equal(next(iter(alone))[0]["input_ids"], next(iter(loaders))[0]["input_ids"])


def test_losses_on_both_and_a_training_that_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    own, general = (write_corpus(tmp_path / f"{name}.jsonl", 24, seed) for seed, name in enumerate(("own", "general")))
    trainer = {"max_steps": 14, "val_check_interval": 7, "log_every_n_steps": 1}
    path = str(write_config(tmp_path / "mixed.yaml", small_config(own, trainer)))
    replay = ["--data.replay.path", str(general), "--data.replay.share", "0.4"]
    assert main(["fit", "--config", path, *replay, NAME, "straight"]) == 0
    assert main(["fit", "--config", path, *replay, NAME, "halves", "--trainer.callbacks+", "text_corpus.StopAt3"]) == 0
    assert main(["fit", "--ckpt_path", "halves"]) == 0
    files = [next((tmp_path / "runs").glob(f"small/{name}-*/checkpoints/last.ckpt")) for name in ("straight", "halves")]
    one, other = (torch.load(file, weights_only=True) for file in files)
    assert one["global_step"] == other["global_step"] == 14
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert one["lit_pretrain"]["data_fingerprint"] == other["lit_pretrain"]["data_fingerprint"]

    # Each loss is what the corpus alone has.
    module = TextPretraining.from_checkpoint(files[0])
    common = {"sequence_length": 32, "batch_size": 8, "validation_share": 0.2}
    measured = {}
    for name, data in (
        ("both", DocumentDataModule(str(own), replay=ReplayConfig(str(general)), **common)),
        ("own", DocumentDataModule(str(own), **common)),
        ("general", DocumentDataModule(str(general), **common)),
    ):
        # A table for each loader, all of which have all figures.
        measured[name] = Trainer(**QUIET).validate(module, datamodule=data, verbose=False)[-1]
    both, own_figures, general_figures = (measured[name] for name in ("both", "own", "general"))
    replayed = {name.replace("/replay", ""): value for name, value in both.items() if "/replay/" in name}
    assert replayed == general_figures != own_figures == {name: both[name] for name in own_figures}
    capsys.readouterr()
    assert main(["fit", "--config", path, "--data.replay.path", str(own)]) == 2
    assert "data.replay is the corpus that is trained on" in capsys.readouterr().err
    assert main(["fit", "--config", path, *replay, "--data.replay.text_column", "body"]) == 2
    assert "set data.replay.text_column" in capsys.readouterr().err


def test_a_general_corpus_that_cannot_serve(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    SPELLING.save(tmp_path / "tokenizer")
    own, other, one = (tmp_path / f"{name}.txt" for name in ("own", "other", "one"))
    write_words(own, "senate", 20)
    other.write_text("\n\n".join(["Инсулин и тромбоз. Эмболия."] * 20))
    one.write_text("The senate pays. The army pays.")
    trainer = {"max_steps": 1, "val_check_interval": 1, "logger": False, "enable_checkpointing": False}
    config = small_config(own, trainer, tokenizer=str(tmp_path / "tokenizer"), replay={"path": str(other)})
    path = str(write_config(tmp_path / "replay.yaml", config))
    assert main(["fit", "--config", path]) == 2
    assert "give general texts in the script of those that are trained on" in capsys.readouterr().err
    assert main(["fit", "--config", path, "--data.replay.path", str(one)]) == 2
    assert "one.txt is one document" in capsys.readouterr().err
    # Neither corpus was tokenised for that.
    assert not (tmp_path / "runs" / "caches" / "documents").exists()
    # Null on the command line is no corpus, and not one of the name "None".
    assert main(["fit", "--config", path, "--data.replay.path", "null"]) == 0


def test_what_has_no_meaning_is_told(tmp_path):
    with pytest.raises(UserError, match=r"data\.replay\.share is 1"):
        ReplayConfig("general", 1.0)
    with pytest.raises(UserError, match="has settings and no corpus"):
        ReplayConfig(share=0.5)
    assert not ReplayConfig().is_given and ReplayConfig(data_files="a.txt").is_given
    with pytest.raises(UserError, match=r"data\.text\.replay"):
        JointDataModule(None, DocumentDataModule(replay=ReplayConfig("general")))
