"""A vocabulary that grows with `data.new_pieces`: embeddings, heads, record, checkpoints, export and fine-tuning."""

import numpy
import pytest
import torch
from labelled_texts import SPELLING, make_texts, write_texts
from small_roberta import small_roberta_tokenizer
from small_training import training_of, write_config
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, BertModel

from lit_pretrain.__main__ import main
from lit_pretrain.data.text.new_pieces import replaced_pieces
from lit_pretrain.data.text.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.modules import FineTuning, TextPretraining
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.trainer import Trainer

NAME = "--trainer.logger.init_args.run_name"
OLD = SPELLING.vocabulary_size
WORDS = ["hypoglycemia", "hypoglycemic", "thrombosis", "insulin", "embolism", "anticoagulant"]
OBJECTIVES = ["MaskedLanguageModeling", "NextSentencePrediction", "BagOfWords", "ReplacedTokenDetection"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Where runs are, none of them there yet."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def write_domain(path, seed=0):
    """Documents on medicine, whose words the tokenizer spells letter by letter."""
    generator = numpy.random.default_rng(seed)
    documents = []
    for _ in range(40):
        sentences = [" ".join(generator.choice(WORDS, 3)).capitalize() + "." for _ in range(6)]
        documents.append(" ".join(sentences))
    path.write_text("\n\n".join(documents))
    return path


def write_bert(directory, rows=OLD):
    """A BERT of transformers' with its heads, weights far from their start, and a table of so many rows."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForPreTraining(BertConfig(vocab_size=rows, max_position_embeddings=40, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    model.eval().save_pretrained(directory)
    SPELLING.save(directory)
    return model


def domain_config(tmp_path, init_from, objectives, layout="segments", rate=1e-3, **trainer):
    """Going on with medicine and twelve new pieces."""
    corpus = tmp_path / "domain.txt"
    if not corpus.exists():
        write_domain(corpus)
    return training_of(
        {
            "class_path": "TextPretraining",
            "init_args": {
                "init_from": init_from,
                "objectives": [{"class_path": name} for name in objectives],
                "optimizer": {"learning_rate": rate, "weight_decay": 0.0},
            },
        },
        {
            "class_path": "DocumentDataModule",
            "init_args": {
                "path": str(corpus),
                "new_pieces": 12,
                "layout": layout,
                "sequence_length": 24,
                "batch_size": 8,
            },
        },
        {"max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 1} | trainer,
    )


@pytest.mark.parametrize("rows", [OLD, OLD + 5])
def test_new_rows_are_the_mean_of_what_they_replace(tmp_path, runs, rows):
    theirs = write_bert(tmp_path / "bert", rows)
    rates = {"rate": 1e-12, "max_steps": 1, "val_check_interval": 1}
    config = domain_config(tmp_path, str(tmp_path / "bert"), OBJECTIVES[:2], "sentence_pairs", **rates)
    assert main(["fit", "--config", str(write_config(tmp_path / "grown.yaml", config))]) == 0
    module = TextPretraining.from_checkpoint("last")
    larger = module.tokenizer
    new = range(OLD, larger.vocabulary_size)
    assert 6 <= len(new) <= 12 and set(WORDS) <= set(larger.vocabulary[OLD:])
    table, bias = module.encoder.embeddings.token.weight, module.objectives[0].head.bias
    assert len(table) == len(bias) == max(rows, larger.vocabulary_size)
    old_table = theirs.bert.embeddings.word_embeddings.weight
    old_bias = theirs.cls.predictions.bias
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(table[:OLD], old_table[:OLD], **close)
    torch.testing.assert_close(bias[:OLD], old_bias[:OLD], **close)
    for index, replaced in zip(new, replaced_pieces(larger, SPELLING), strict=True):
        torch.testing.assert_close(table[index], old_table[replaced].mean(dim=0), **close)
        torch.testing.assert_close(bias[index], old_bias[replaced].mean(), **close)
    # What the table had besides, for nobody, stays so.
    torch.testing.assert_close(table[larger.vocabulary_size :], old_table[larger.vocabulary_size :], **close)
    assert module.start.taken_heads == () and module.lineage["new_pieces"] == str(len(new))
    assert module.lineage["tokenizer_from"] == SPELLING.hash != larger.hash


def test_heads_of_ours_grow_too_and_training_goes_on_exactly(tmp_path, runs, capsys):
    write_bert(tmp_path / "bert")
    config = domain_config(tmp_path, str(tmp_path / "bert"), OBJECTIVES[2:], max_steps=2, val_check_interval=2)
    del config["data"]["init_args"]["new_pieces"]
    assert main(["fit", "--config", str(write_config(tmp_path / "first.yaml", config)), NAME, "first"]) == 0
    source = TextPretraining.from_checkpoint("first")
    config = domain_config(tmp_path, "first", OBJECTIVES[2:])
    config["data"]["init_args"]["new_pieces"] = 3
    path = str(write_config(tmp_path / "second.yaml", config))
    capsys.readouterr()
    assert main(["fit", "--config", path, NAME, "straight"]) == 0
    assert "heads taken: bag_of_words, replaced_token_detection" in capsys.readouterr().out
    assert main(["fit", "--config", path, NAME, "halves", "--trainer.callbacks+", "text_corpus.StopAt3"]) == 0
    # The texts that the pieces were chosen by may be others by then, and the caches gone.
    (halves,) = runs.glob("small/halves-*/checkpoints/last.ckpt")
    pieces = tokenizer_from_json(torch.load(halves, weights_only=True)["lit_pretrain"]["tokenizer"]).vocabulary
    for file in (runs / "caches" / "tokenizers").glob("*/*"):
        file.unlink()
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", "halves", "--data.new_pieces", "2"]) == 2
    assert "data.new_pieces is 2, and the run that goes on had 3" in capsys.readouterr().err
    small_roberta_tokenizer().save(tmp_path / "other")
    assert main(["fit", "--ckpt_path", "halves", "--data.tokenizer", str(tmp_path / "other")]) == 2
    assert "is not the one at" in capsys.readouterr().err
    assert main(["fit", "--ckpt_path", "halves"]) == 0
    (straight,) = runs.glob("small/straight-*/checkpoints/last.ckpt")
    one, other = (torch.load(file, weights_only=True) for file in (straight, halves))
    assert one["global_step"] == other["global_step"] == 6
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
    assert one["lit_pretrain"]["tokenizer_hash"] == other["lit_pretrain"]["tokenizer_hash"]
    assert one["lit_pretrain"]["lineage"] == other["lit_pretrain"]["lineage"]
    assert one["lit_pretrain"]["lineage"]["tokenizer_from"] == source.tokenizer.hash
    state = one["state_dict"]
    for name in ("objectives.0.decoder.weight", "objectives.0.decoder.bias", "objectives.1.head.bias"):
        assert len(state[name]) == len(pieces) > len(source.state_dict()[name]) == OLD

    # Measured again by the same config, it is not grown again; another training may grow what has grown.
    assert main(["validate", "--config", path, "--ckpt_path", str(straight)]) == 0
    module = TextPretraining.from_checkpoint(str(straight))
    assert module.tokenizer.vocabulary == pieces and "new_pieces" in module.describe()
    write_domain(tmp_path / "more.txt").write_text("\n\n".join(["Bradycardia and tachycardia. Bradycardia."] * 30))
    path = str(write_config(tmp_path / "third.yaml", domain_config(tmp_path, str(straight), OBJECTIVES[2:])))
    assert main(["fit", "--config", path, "--data.path", str(tmp_path / "more.txt"), NAME, "third"]) == 0
    again = TextPretraining.from_checkpoint("third").tokenizer.vocabulary
    assert again[: len(pieces)] == pieces and "bradycardia" in again[len(pieces) :]

    # Elsewhere it is what the larger tokenizer makes of the texts.
    assert main(["export", "--ckpt", str(straight), "--to", str(tmp_path / "out"), "--format", "hf"]) == 0
    theirs, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (BertModel, AutoTokenizer))
    texts = ["Hypoglycemia, a thrombosis of insulin.", "An anticoagulant for hypoglycemic embolisms"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    for ids, text in zip(batch["input_ids"].tolist(), texts, strict=True):
        own = [module.tokenizer.cls_id, *module.tokenizer.encode(text), module.tokenizer.sep_id]
        assert ids[: len(own)] == own and max(own) >= OLD
    ours = module.encoder.forward_features(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(theirs(**batch).last_hidden_state[seen], ours[seen], atol=1e-5, rtol=0)
    assert f"with {len(pieces) - OLD} new word pieces" in (tmp_path / "out" / "README.md").read_text()

    tuning = FineTuning(init_from=str(straight))
    data = make_texts(write_texts(tmp_path / "labelled.parquet", 40))
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        logger=False,
        max_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(tuning, datamodule=data)
    assert data.tokenizer.vocabulary == pieces
    assert load_starting_point(str(straight)).tokenizer.vocabulary == pieces


def test_another_script_is_told_what_helps(tmp_path, runs, capsys):
    write_bert(tmp_path / "bert")
    (tmp_path / "domain.txt").write_text("\n\n".join(["Инсулин и тромбоз. Эмболия."] * 30))
    config = domain_config(tmp_path, str(tmp_path / "bert"), OBJECTIVES[:1], max_steps=1, val_check_interval=1)
    path = str(write_config(tmp_path / "script.yaml", config))
    assert main(["fit", "--config", path, "--data.new_pieces", "0"]) == 2
    told = capsys.readouterr().err
    assert "no pieces for 100% of" in told and "'Инсулин'" in told and "add its pieces by data.new_pieces" in told
    # A few texts are enough to tell.
    assert not (runs / "caches" / "documents").exists()
    assert main(["fit", "--config", path]) == 0
    (piece,) = TextPretraining.from_checkpoint("last").tokenizer.encode("Инсулин")
    assert piece >= OLD


def test_ngrams_of_old_pieces_are_refused(tmp_path, runs, capsys):
    config = domain_config(tmp_path, "none", OBJECTIVES[:1], max_steps=1, val_check_interval=1)
    shape = {"transformer": {"depth": 1, "width": 32, "heads": 2}, "ngrams": 2, "ngram_rows": 50}
    config["model"]["init_args"] |= {"encoder": {"class_path": "TextEncoder", "init_args": shape}, "init_from": None}
    path = str(write_config(tmp_path / "ngrams.yaml", config))
    # Without a tokenizer that could grow.
    assert main(["fit", "--config", path]) == 2
    assert "raise data.vocabulary_size instead" in capsys.readouterr().err
    SPELLING.save(tmp_path / "tokenizer")
    named = ["--data.tokenizer", str(tmp_path / "tokenizer")]
    # From scratch they are those of the larger vocabulary.
    assert main(["fit", "--config", path, *named]) == 0
    module = TextPretraining.from_checkpoint("last")
    assert module.tokenizer.vocabulary_size > OLD and not module.encoder.lacks_ngrams
    config = domain_config(tmp_path, "last", OBJECTIVES[:1], max_steps=1, val_check_interval=1)
    write_domain(tmp_path / "domain.txt").write_text("\n\n".join(["Bradycardia and tachycardia. Bradycardia."] * 30))
    capsys.readouterr()
    assert main(["fit", "--config", str(write_config(tmp_path / "next.yaml", config))]) == 2
    assert "which new pieces would take apart" in capsys.readouterr().err
