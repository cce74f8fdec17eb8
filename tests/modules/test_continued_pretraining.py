"""Pretraining that goes on from weights that are there: ours and public ones, their tokenizer and heads."""

import json

import pytest
import torch
from labelled_texts import TOKENIZER
from labelled_texts import make_encoder as make_text_encoder
from small_pairs import make_encoders, make_pairs, write_pairs
from small_pictures import make_encoder, picture_config, write_pictures
from small_roberta import small_roberta_tokenizer
from small_training import small_config, training_of, write_config
from text_corpus import write_corpus
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, TextPretraining, VisionPretraining
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import (
    BagOfWords,
    CausalLanguageModeling,
    ContrastiveSpans,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
    Rotation,
)
from lit_pretrain.trainer import Trainer

TRAINER = {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False, "logger": False}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Where runs are, none of them there yet."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def public_directory(model, directory):
    """A model of transformers' with weights far from their start, and the tokenizer of the made-up texts."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    model.eval().save_pretrained(directory)
    TOKENIZER.save(directory)
    return str(directory)


def bert(kind, **settings):
    """A small one of random weights."""
    size = TOKENIZER.vocabulary_size
    return kind(BertConfig(vocab_size=size, max_position_embeddings=32, **SIZES, **settings))


def pair_batch():
    """Six pairs of texts of uneven length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, TOKENIZER.vocabulary_size, (6, 20), generator=generator)
    lengths = torch.tensor([20, 13, 9, 20, 17, 11])
    ids[:, 0], ids[torch.arange(6), lengths - 1] = TOKENIZER.cls_id, TOKENIZER.sep_id
    places = torch.arange(20)
    mask = (places < lengths[:, None]).long()
    segments = ((places > 6) & mask.bool()).long()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    fields = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": segments, "padded": True}
    return fields | {"next_sentence_label": labels}


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_the_first_step_of_bert_for_pretraining_is_its_own(tmp_path, activation):
    theirs = bert(BertForPreTraining, hidden_act=activation)
    directory = public_directory(theirs, tmp_path / "bert")
    # Another masking rate than it was trained with asks the same of the head.
    objectives = [MaskedLanguageModeling(probability=0.3), NextSentencePrediction()]
    module = TextPretraining(None, objectives, init_from=directory)
    assert module.tokenizer.hash == TOKENIZER.hash
    module.configure_model()
    told = module.start.told()
    assert "heads taken: masked_language_modeling, next_sentence_prediction" in told and "left out" not in told

    batch, generator = pair_batch(), torch.Generator().manual_seed(0)
    encoder_pass = objectives[0].make_pass(batch, module.encoder, generator)
    indices, valid = encoder_pass.targets["indices"], encoder_pass.targets["valid"]
    words = torch.full_like(batch["input_ids"], -100)
    for row, column in zip(*torch.nonzero(valid, as_tuple=True), strict=True):
        words[row, indices[row, column]] = batch["input_ids"][row, indices[row, column]]
    inputs = {name: encoder_pass.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    expected = theirs(**inputs)
    word_loss = torch.nn.functional.cross_entropy(expected.prediction_logits.flatten(0, 1), words.flatten())
    pair_loss = torch.nn.functional.cross_entropy(expected.seq_relationship_logits, batch["next_sentence_label"])

    from lit_pretrain.objectives.objective import compute_objectives

    outputs = compute_objectives(module.eval().encoder, objectives, batch, torch.Generator().manual_seed(0))
    losses = torch.stack([outputs[objective.name].loss for objective in objectives])
    torch.testing.assert_close(losses, torch.stack([word_loss, pair_loss]), atol=1e-5, rtol=1e-5)


def test_word_heads_of_other_models(tmp_path):
    theirs = bert(BertForMaskedLM)
    directory = public_directory(theirs, tmp_path / "words")
    objectives = [MaskedLanguageModeling(), NextSentencePrediction()]
    module = TextPretraining(None, objectives, init_from=directory)
    module.configure_model()
    assert "heads taken: masked_language_modeling; heads new: next_sentence_prediction" in module.start.told()
    assert torch.equal(objectives[0].head.bias, theirs.cls.predictions.bias)

    # A decoder of its own has no place here.
    untied = bert(BertForMaskedLM, tie_word_embeddings=False)
    module = TextPretraining(None, [MaskedLanguageModeling()], init_from=public_directory(untied, tmp_path / "untied"))
    module.configure_model()
    assert "heads new: masked_language_modeling" in module.start.told() and "left out cls." in module.start.told()


def test_roberta_goes_on_with_its_own_pieces(tmp_path, runs):
    tokenizer = small_roberta_tokenizer()
    settings = RobertaConfig(vocab_size=tokenizer.vocabulary_size, max_position_embeddings=34, **SIZES)
    theirs = RobertaForMaskedLM(settings)
    directory = public_directory(theirs, tmp_path / "roberta")
    tokenizer.save(directory)
    # " low", "er", ",", " low"
    ids = tokenizer.encode(" lower, low")
    assert tokenizer.continuation_mask[ids].tolist() == [
        not piece.startswith("\u0120") for piece in pieces(tokenizer, ids)
    ]
    assert not tokenizer.continuation_mask[tokenizer.special_ids].any()
    objective = {"class_path": "MaskedLanguageModeling", "init_args": {"whole_word": True}}
    data = {"path": str(write_corpus(tmp_path / "corpus.jsonl", 12)), "layout": "segments", "sequence_length": 24}
    config = training_of(
        {"class_path": "TextPretraining", "init_args": {"init_from": directory, "objectives": [objective]}},
        {"class_path": "DocumentDataModule", "init_args": data | {"batch_size": 4}},
        {"max_steps": 1, "val_check_interval": 1, "limit_val_batches": 1},
    )
    config["model"]["init_args"]["optimizer"] = {"learning_rate": 1e-9, "weight_decay": 0.0}
    assert main(["fit", "--config", str(write_config(tmp_path / "roberta.yaml", config))]) == 0
    module = TextPretraining.from_checkpoint("last")
    torch.testing.assert_close(module.objectives[0].head.dense.weight, theirs.lm_head.dense.weight, atol=1e-6, rtol=0)
    assert module.tokenizer.hash == tokenizer.hash


def pieces(tokenizer, ids):
    return [tokenizer.id_to_token(number) for number in ids]


def test_heads_of_ours_serve_again_where_their_settings_are_the_same(tmp_path, runs, capsys):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 20)
    config = small_config(corpus, {"max_steps": 2, "val_check_interval": 2})
    config["model"]["init_args"]["objectives"] = [
        {"class_path": "MaskedLanguageModeling"},
        {"class_path": "ReplacedTokenDetection", "init_args": {"generator_width_share": 0.5}},
        {"class_path": "NextSentencePrediction"},
    ]
    assert main(["fit", "--config", str(write_config(tmp_path / "first.yaml", config))]) == 0
    source = TextPretraining.from_checkpoint("last")
    objectives = [BagOfWords(), ReplacedTokenDetection(), MaskedLanguageModeling(probability=0.4, weight=2.0)]
    module = TextPretraining(None, objectives, init_from="last")
    module.configure_model()
    assert module.start.taken_heads == ("masked_language_modeling",)
    assert module.start.fresh_heads == (
        "bag_of_words",
        "replaced_token_detection (its generator_width_share is 0.25 here, 0.5 there)",
    )
    assert module.start.left_out == ["the head of NextSentencePrediction"]
    for name, value in source.objectives[0].state_dict().items():
        assert torch.equal(objectives[2].state_dict()[name], value)
    assert all(torch.equal(value, module.encoder.state_dict()[n]) for n, value in source.encoder.state_dict().items())
    # What does not fit is refused before anything is read: the corpus is not even there.
    config["data"]["init_args"]["path"] = "nowhere.jsonl"
    # Another tokenizer, as in fine-tuning.
    TOKENIZER.save(tmp_path / "another")
    go_on = training_of(
        {
            "class_path": "TextPretraining",
            "init_args": {"init_from": "last", "objectives": [{"class_path": "MaskedLanguageModeling"}]},
        },
        {"class_path": "DocumentDataModule", "init_args": config["data"]["init_args"] | {"layout": "segments"}},
        {"max_steps": 2, "val_check_interval": 2},
    )
    path = write_config(tmp_path / "second.yaml", go_on)
    capsys.readouterr()
    assert main(["fit", "--config", str(path), "--data.tokenizer", str(tmp_path / "another")]) == 2
    assert "set data.tokenizer to null to take the model's own" in capsys.readouterr().err
    assert main(["fit", "--config", str(path), "--data.sequence_length", "64"]) == 2
    assert "max_positions" in capsys.readouterr().err


def test_going_on_is_exact_and_tells_where_from(tmp_path, runs, capsys):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 20)
    directory = public_directory(bert(BertForPreTraining, hidden_dropout_prob=0.1), tmp_path / "bert")
    settings = {
        "init_from": directory,
        "objectives": [{"class_path": "MaskedLanguageModeling"}],
        # New, and nothing that is learned from: trained in neither half.
        "pooling": "map",
        "layer_decay": 0.5,
        "head_factor": 2.0,
        "freeze": {"blocks": 1},
        "optimizer": {"learning_rate": 1e-3},
    }
    data = {"path": str(corpus), "layout": "segments", "sequence_length": 24, "batch_size": 4}
    trainer = {"max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 1}
    config = training_of(
        {"class_path": "TextPretraining", "init_args": settings},
        {"class_path": "DocumentDataModule", "init_args": data},
        trainer,
    )
    path = str(write_config(tmp_path / "go_on.yaml", config))
    name = "--trainer.logger.init_args.run_name"
    assert main(["fit", "--config", path, name, "straight"]) == 0
    assert main(["fit", "--config", path, name, "halves", "--trainer.callbacks+", "text_corpus.StopAt3"]) == 0
    # What the weights came from may be gone by then.
    for file in (tmp_path / "bert").iterdir():
        file.unlink()
    (tmp_path / "bert").rmdir()
    assert main(["fit", "--ckpt_path", "halves"]) == 0
    (straight,), (halves,) = (
        list(runs.glob(f"small/{kind}-*/checkpoints/last.ckpt")) for kind in ("straight", "halves")
    )
    one, other = (torch.load(file, weights_only=True) for file in (straight, halves))
    assert one["global_step"] == other["global_step"] == 6
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
    assert one["lit_pretrain"]["lineage"] == other["lit_pretrain"]["lineage"] == {"init_from": directory}
    record = json.loads((straight.parents[1] / "run.json").read_text())
    assert record
    # What is frozen has not moved, what is trained has.
    tuned = load_starting_point(str(straight))
    assert tuned.tokenizer.hash == TOKENIZER.hash
    capsys.readouterr()
    # A start and a checkpoint at once.
    assert main(["fit", "--config", path, "--ckpt_path", str(halves), "--model.init_from", "another"]) == 2
    assert "leave it as it was, or start a new run" in capsys.readouterr().err
    small = str(write_config(tmp_path / "small.yaml", small_config(corpus, {"max_steps": 1, "val_check_interval": 1})))
    assert main(["fit", "--config", small, name, "begun"]) == 0
    assert main(["fit", "--config", path, "--ckpt_path", "begun"]) == 2
    assert "begins a new training, and --ckpt_path goes on with one" in capsys.readouterr().err


def test_layers_have_their_rates_and_frozen_ones_none(tmp_path):
    directory = public_directory(bert(BertForMaskedLM), tmp_path / "bert")
    module = TextPretraining(
        None, [MaskedLanguageModeling()], init_from=directory, freeze=FreezingConfig(blocks=1), layer_decay=0.5
    )
    module.configure_model()
    assert not module.encoder.embeddings.training and not module.encoder.transformer.blocks[0].training
    frozen = [name for name, parameter in module.encoder.named_parameters() if not parameter.requires_grad]
    assert frozen and all(name.startswith(("embeddings.", "transformer.blocks.0.")) for name in frozen)
    module._trainer = Trainer(**TRAINER, max_steps=5, enable_checkpointing=False)
    groups = {group["label"]: group["lr"] / module.learning_rate for group in module.make_optimizer(False).param_groups}
    assert groups == {"heads": 1.0, "block_2": 0.5}


def test_pictures_go_on_too(tmp_path, runs, capsys):
    pictures = write_pictures(tmp_path / "pictures.parquet", count=40, size=18)
    objectives = [{"class_path": "MaskedImageModeling", "init_args": {"decoder_depth": 1, "decoder_width": 32}}]
    objectives.append({"class_path": "Colorization"})
    config = picture_config(pictures, objectives, trainer={"max_steps": 2, "val_check_interval": 2})
    assert main(["fit", "--config", str(write_config(tmp_path / "first.yaml", config))]) == 0
    source = VisionPretraining.from_checkpoint("last")
    del config["model"]["init_args"]["encoder"]
    config["model"]["init_args"] |= {"init_from": "last", "objectives": [*objectives[:1], {"class_path": "Rotation"}]}
    config["trainer"]["max_steps"] = 1
    config["trainer"]["val_check_interval"] = 1
    config["model"]["init_args"]["optimizer"] = {"learning_rate": 1e-9, "weight_decay": 0.0}
    assert main(["fit", "--config", str(write_config(tmp_path / "second.yaml", config))]) == 0
    told = capsys.readouterr().out
    assert "left out the head of Colorization; heads taken: masked_image_modeling; heads new: rotation" in told
    module = VisionPretraining.from_checkpoint("last")
    for name, value in source.state_dict().items():
        if not name.startswith("objectives.1"):
            torch.testing.assert_close(module.state_dict()[name], value, atol=1e-6, rtol=0)
    assert module.lineage["init_from_objectives"] == "MaskedImageModeling + Colorization"
    assert module.describe()["init_from_step"] == "2"


def test_starts_that_cannot_be(tmp_path):
    text = public_directory(bert(BertForMaskedLM), tmp_path / "bert")
    with pytest.raises(UserError, match="holds a TextEncoder, and VisionPretraining trains a VisionEncoder"):
        VisionPretraining(None, [MaskedImageModeling()], init_from=text)
    with pytest.raises(UserError, match=r"either model.encoder, .* or model.init_from"):
        TextPretraining(make_text_encoder(), [MaskedLanguageModeling()], init_from=text)
    with pytest.raises(UserError, match=r"either model.encoder, .* or model.init_from"):
        VisionPretraining(objectives=[Rotation()])
    with pytest.raises(UserError, match="model.dropout changes the encoder of model.init_from"):
        VisionPretraining(make_encoder(), [Rotation()], dropout=0.1)
    with pytest.raises(UserError, match=r"freeze.blocks is 3, and the encoder has 2 blocks"):
        TextPretraining(None, [MaskedLanguageModeling()], init_from=text, freeze=FreezingConfig(3))
    spans = TextPretraining(None, [ContrastiveSpans()], init_from=text, freeze=FreezingConfig("all"))
    spans.configure_model()
    with pytest.raises(UserError, match="Nothing is left to train"):
        spans.make_optimizer(False)

    causal = public_directory(bert(BertForMaskedLM, is_decoder=True), tmp_path / "causal")
    with pytest.raises(UserError, match="no token sees a later one"):
        TextPretraining(None, [MaskedLanguageModeling()], init_from=causal)
    TextPretraining(None, [CausalLanguageModeling()], init_from=causal)

    pair = ContrastivePretraining(**make_encoders(), embedding_width=16, seed=0)
    trainer = Trainer(**TRAINER, max_steps=1, enable_checkpointing=False)
    trainer.fit(pair, make_pairs(write_pairs(tmp_path / "pairs.parquet"), tmp_path))
    trainer.save_checkpoint(tmp_path / "pair.ckpt")
    with pytest.raises(UserError, match="say which one"):
        TextPretraining(None, [MaskedLanguageModeling()], init_from=str(tmp_path / "pair.ckpt"))
    tower = TextPretraining(None, [MaskedLanguageModeling()], init_from=f"{tmp_path / 'pair.ckpt'}:text")
    assert tower.lineage["init_from_tower"] == "text" and tower.tokenizer is not None
    with pytest.raises(UserError, match=r"name another, or one tower of two as '...:text'"):
        TextPretraining(None, [MaskedLanguageModeling()], init_from=f"{tmp_path / 'pair.ckpt'}:vision")


def test_a_pooler_and_a_classifier_that_the_encoder_does_not_have(tmp_path):
    objectives = [MaskedLanguageModeling(), NextSentencePrediction()]
    source = TextPretraining(None, objectives, init_from=public_directory(bert(BertForPreTraining), tmp_path / "bert"))
    source.configure_model()
    checkpoint = {"state_dict": source.state_dict(), "global_step": 1}
    source.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "pooler.ckpt")
    # What the encoder pooled with, the head that reads it goes on with.
    objectives = [NextSentencePrediction()]
    module = TextPretraining(None, objectives, init_from=str(tmp_path / "pooler.ckpt"), pooling="mean")
    module.configure_model()
    assert module.start.taken_heads == ("next_sentence_prediction",)
    assert module.start.left_out == ["the head of MaskedLanguageModeling"]
    for name, value in source.encoder.pooler.state_dict().items():
        assert torch.equal(objectives[0].pooler.state_dict()[name], value)

    directory = public_directory(bert(BertForSequenceClassification), tmp_path / "classes")
    module = TextPretraining(None, [MaskedLanguageModeling()], init_from=directory)
    module.configure_model()
    told = module.start.told()
    assert "left out classifier.weight, classifier.bias" in told and "head is taken" not in told


def test_weights_without_a_tokenizer_or_a_head(tmp_path, runs, capsys):
    directory = public_directory(bert(BertForMaskedLM), tmp_path / "bert")
    model = {"init_from": directory, "objectives": [{"class_path": "MaskedLanguageModeling"}]}
    data = {"path": "nowhere.jsonl", "layout": "segments", "sequence_length": 24, "vocabulary_size": 20}
    config = training_of(
        {"class_path": "TextPretraining", "init_args": model}, {"class_path": "DocumentDataModule", "init_args": data}
    )
    (tmp_path / "bert" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    for file in (tmp_path / "bert").glob("*token*"):
        file.unlink()
    (tmp_path / "bert" / "vocab.txt").unlink(missing_ok=True)
    path = str(write_config(tmp_path / "bare.yaml", config))
    capsys.readouterr()
    # One that is trained on the texts would have other pieces in the places of those that were learned.
    assert main(["fit", "--config", path]) == 2
    assert "bert brings no tokenizer, and the pieces of one that is trained here" in capsys.readouterr().err
    small_roberta_tokenizer().save(tmp_path / "other")
    assert main(["fit", "--config", path, "--data.tokenizer", str(tmp_path / "other")]) == 2
    assert "weights need the tokenizer that they were trained with" in capsys.readouterr().err
    corpus = ["--data.path", str(write_corpus(tmp_path / "corpus.jsonl", 12))]
    named = [*corpus, "--data.tokenizer", str(tmp_path / "tokenizer.json")]
    assert main(["validate", "--config", path, *named]) == 0
    assert "heads taken: masked_language_modeling" in capsys.readouterr().out
    model["objectives"] += [{"class_path": "BagOfWords"}]
    path = str(write_config(tmp_path / "bag.yaml", config))
    assert main(["validate", "--config", path, *named]) == 2
    assert "heads that have learned nothing (bag_of_words)" in capsys.readouterr().err


def test_architecture_alone_has_new_weights_and_no_heads(tmp_path):
    directory = public_directory(bert(BertForPreTraining), tmp_path / "bert")
    module = TextPretraining(None, [MaskedLanguageModeling()], init_from=directory, pretrained=False)
    module.configure_model()
    assert module.lineage == {"init_from": "scratch", "architecture_from": directory}
    assert module.tokenizer.hash == TOKENIZER.hash and not module.start.taken_heads
    assert module.start.told().startswith(f"The encoder starts from new weights, in the shape of {directory} (")
    source = load_starting_point(directory).encoder
    assert not torch.equal(module.encoder.embeddings.token.weight, source.embeddings.token.weight)
    assert isinstance(source.config, TransformerConfig) and source.settings() == module.encoder.settings()
