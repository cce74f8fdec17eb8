"""Encoders from everything that a training may start from, and what is said of everything else."""

import json
import shutil

import pytest
import torch
from labelled_texts import TOKENIZER, make_texts, write_texts
from labelled_texts import make_encoder as make_text_encoder
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs
from small_pictures import make_encoder, make_pictures, write_pictures
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, FineTuning
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.starting_points import load_starting_point, with_settings, without_weights
from lit_pretrain.objectives import Contrastive
from lit_pretrain.trainer import Trainer

TRAINER = {"accelerator": "cpu", "precision": "32-true", "max_steps": 1, "enable_progress_bar": False}


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.fixture
def fine_tuned(tmp_path):
    """A checkpoint of a step of fine-tuning on texts."""
    TOKENIZER.save(tmp_path / "tokenizer")
    data = make_texts(write_texts(tmp_path / "t.parquet"), tmp_path / "tokenizer", cache_directory=str(tmp_path))
    module = FineTuning(make_text_encoder(), seed=0)
    trainer = Trainer(**TRAINER, logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "fine.ckpt")
    return tmp_path / "fine.ckpt", module


def test_a_checkpoint_of_ours_brings_its_tokenizer(fine_tuned):
    path, module = fine_tuned
    start = load_starting_point(str(path))
    assert same(start.encoder, module.encoder) and start.tokenizer.hash == TOKENIZER.hash
    assert start.lineage["init_from_module"] == "FineTuning" and start.lineage["init_from_step"] == "1"
    fresh = without_weights(start)
    assert fresh.encoder.settings() == start.encoder.settings() and not same(fresh.encoder, start.encoder)
    assert fresh.lineage == {"init_from": "scratch", "architecture_from": str(path)}


@pytest.mark.parametrize("sharing", ["blocks", "blocks_except_norm"])
def test_either_of_two_towers(tmp_path, sharing):
    pair = ContrastivePretraining(**make_encoders(), share_weights=sharing, embedding_width=16, seed=0)
    trainer = Trainer(**TRAINER, logger=False, enable_checkpointing=False)
    trainer.fit(pair, make_pairs(write_pairs(tmp_path / "pairs.parquet"), tmp_path))
    trainer.save_checkpoint(tmp_path / "pair.ckpt")
    path = str(tmp_path / "pair.ckpt")
    pair.eval()

    texts = FineTuning(init_from=f"{path}:text").eval()
    batch = {"input_ids": torch.arange(12).view(3, 4), "attention_mask": torch.ones(3, 4).bool()}
    assert torch.equal(texts.features(batch), pair.text_encoder(**batch))
    assert texts.tokenizer.hash == pair.tokenizer.hash and texts.lineage["init_from_tower"] == "text"

    pictures = FineTuning(init_from=f"{path}:vision").eval()
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    expected = pair.vision_encoder(pair.vision_encoder.normalize(images / 255))
    torch.testing.assert_close(pictures.features({"images": images}), expected)
    assert pictures.tokenizer is None
    trainer = Trainer(**TRAINER, logger=False, enable_checkpointing=False)
    trainer.fit(pictures, make_pictures(write_pictures(tmp_path / "pictures.parquet"), tmp_path))

    # A tower knows its modality.
    towers = {"text": TowerConfig(init_from=path), "vision": TowerConfig(init_from=path)}
    again = ContrastivePretraining(**towers)
    # With it comes where texts and pictures meet, and how sharply they are told apart.
    assert same(again.text_tower, pair.text_tower) and same(again.vision_tower, pair.vision_tower)
    assert torch.equal(again.objective.log_scale, pair.objective.log_scale) and again.embedding_width == 16
    assert pair.objective.log_scale != Contrastive().log_scale
    assert again.lineage["vision_init_from_step"] == "1"

    with pytest.raises(UserError, match=r"pair.ckpt holds a pair of towers: say which one, .*pair.ckpt:text or"):
        FineTuning(init_from=path)
    with pytest.raises(UserError, match="text.init_from is .*:vision, which holds a VisionEncoder"):
        ContrastivePretraining(text=TowerConfig(init_from=f"{path}:vision"), vision=TowerConfig(init_from=path))


def test_two_pretrained_towers_share_the_blocks_that_are_named(tmp_path):
    pair = ContrastivePretraining(**make_encoders(), embedding_width=16, seed=0)
    trainer = Trainer(**TRAINER, logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(pair, make_pairs(write_pairs(tmp_path / "pairs.parquet", make_rows(40)), tmp_path / "caches"))
    trainer.save_checkpoint(tmp_path / "pair.ckpt")
    path = str(tmp_path / "pair.ckpt")
    towers = {name: TowerConfig(init_from=f"{path}:{name}") for name in ("text", "vision")}
    sharing = {"share_weights": "blocks_except_norm"}
    with pytest.raises(UserError, match="both start from pretrained weights: set model.blocks_from to text or vision"):
        ContrastivePretraining(**towers, **sharing)
    with pytest.raises(UserError, match="blocks_from is text, and each tower has blocks of its own"):
        ContrastivePretraining(**towers, blocks_from="text")
    for kept in ("text", "vision"):
        module = ContrastivePretraining(**towers, **sharing, blocks_from=kept)
        ours = {name: tower.encoder.transformer.blocks[1] for name, tower in module.towers.items()}
        theirs = {name: tower.encoder.transformer.blocks[1] for name, tower in pair.towers.items()}
        assert ours["text"].attention is ours["vision"].attention
        assert same(ours["text"].attention, theirs[kept].attention)
        assert not same(theirs["text"].attention, theirs["vision"].attention)
        assert all(same(ours[name].attention_norm, theirs[name].attention_norm) for name in ours)


def test_one_encoder_has_no_towers(fine_tuned):
    with pytest.raises(UserError, match="fine.ckpt holds one TextEncoder and no two towers: leave ':text' out"):
        load_starting_point(f"{fine_tuned[0]}:text")


def test_public_weights_of_pictures_as_a_directory_and_as_a_file(tmp_path):
    encoder = make_encoder(class_token=True, pooling="cls")
    encoder.save_pretrained(tmp_path / "vit")
    start = load_starting_point(str(tmp_path / "vit"))
    assert isinstance(start.encoder, VisionEncoder) and start.tokenizer is None and same(encoder, start.encoder)
    assert start.lineage == {"init_from": str(tmp_path / "vit")}
    (file,) = (tmp_path / "vit").glob("*.safetensors")
    assert same(encoder, load_starting_point(str(file)).encoder)

    alone = shutil.copy(file, tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match="do not tell heads, activation, .* as in vit_base_patch16_224.mae"):
        FineTuning(init_from=str(alone))
    # The name is taken, and is another's.
    for module in (
        FineTuning,
        lambda **given: ContrastivePretraining(make_encoders()["text_encoder"], vision=TowerConfig(**given)),
    ):
        with pytest.raises(UserError, match=r"alone.safetensors are not those of the encoder .* missing blocks.10"):
            module(init_from=str(alone), architecture="vit_tiny_patch16_224")
    with pytest.raises(UserError, match="architecture is vit_tiny_patch16_224, and .*vit is no file of weights"):
        FineTuning(init_from=str(tmp_path / "vit"), architecture="vit_tiny_patch16_224")
    with pytest.raises(UserError, match="tells what the file model.init_from holds"):
        FineTuning(encoder, architecture="vit_tiny_patch16_224")


def bert(kind, path, **settings):
    """A BERT of transformers' with a head and the small tokenizer, its table filled up to a round number of rows."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = kind(BertConfig(vocab_size=TOKENIZER.vocabulary_size + 7, **sizes, **settings)).eval()
    model.save_pretrained(path)
    TOKENIZER.save(path)
    return model


@torch.no_grad()
def test_a_public_head_is_taken_where_it_tells_the_datas_classes(tmp_path, capsys):
    names = {"id2label": {0: "takes", 1: "keeps", 2: "gives"}, "label2id": {"takes": 0, "keeps": 1, "gives": 2}}
    theirs = bert(BertForSequenceClassification, tmp_path / "classes", **names)
    module = FineTuning(init_from=str(tmp_path / "classes"))
    module.facts = LabelFacts("single_label", ["gives", "takes"])
    module.configure_model()
    batch = {"input_ids": torch.arange(12).view(3, 4), "attention_mask": torch.ones(3, 4).long()}
    torch.testing.assert_close(module.eval().logits(batch), theirs(**batch).logits[:, [2, 0]], atol=1e-5, rtol=1e-5)

    def told(facts, **settings):
        module = FineTuning(init_from=str(tmp_path / "classes"), **settings)
        module.facts = facts
        module.configure_model()
        assert module.head.weight.std() < 0.02
        return module.start.told()

    assert "classifier.bias (it knows takes, keeps, gives, not buys)" in told(
        LabelFacts("single_label", ["gives", "buys"])
    )
    assert "left out classifier.weight, classifier.bias (it reads the pooling pooler)" in told(
        module.facts, pooling="mean"
    )
    assert "left out" not in told(module.facts, pretrained=False)
    data = make_texts(write_texts(tmp_path / "t.parquet"), cache_directory=str(tmp_path))
    fits = Trainer(**TRAINER, logger=False, enable_checkpointing=False)
    fits.fit(FineTuning(init_from=str(tmp_path / "classes"), seed=0), data)
    assert "its head is taken, for takes, keeps, gives" in capsys.readouterr().out


def test_other_heads_are_named(tmp_path, capsys):
    bert(BertForTokenClassification, tmp_path / "tokens")
    assert load_starting_point(str(tmp_path / "tokens")).left_out == ["classifier.bias", "classifier.weight"]
    bert(BertForMaskedLM, tmp_path / "words")
    start = load_starting_point(str(tmp_path / "words"))
    assert start.head is None and len(start.left_out) == 5 and "left out cls.predictions.bias" in start.told()
    bert(BertForSequenceClassification, tmp_path / "classes", num_labels=2)
    TextEncoder.from_pretrained(tmp_path / "classes")
    assert "classes is left out: classifier.bias, classifier.weight." in capsys.readouterr().err
    # Names that transformers made up are none.
    assert load_starting_point(str(tmp_path / "classes")).head.classes == ()


def test_what_is_nothing_to_start_from_is_named(tmp_path):
    with pytest.raises(UserError, match="neither a run nor a directory of public weights"):
        load_starting_point(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="tells of gpt2, which is neither BERT of transformers nor a ViT of timm"):
        load_starting_point(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="tells of no model_type and no architecture"):
        load_starting_point(str(tmp_path))
    for reference in (str(tmp_path / "gone"), "./gone"):
        with pytest.raises(UserError, match="There is nothing at .*gone to start from"):
            load_starting_point(reference)
    with pytest.raises(UserError, match="The checkpoint gone.ckpt does not exist"):
        load_starting_point("gone.ckpt")


def test_settings_are_changed_and_nothing_else(fine_tuned):
    start = load_starting_point(str(fine_tuned[0]))
    assert with_settings(start, {"pooling": None, "transformer.dropout": None}) is start
    changed = with_settings(start, {"pooling": "map", "transformer.dropout": 0.3, "transformer.stochastic_depth": 0.1})
    assert (changed.encoder.config.dropout, changed.encoder.config.stochastic_depth) == (0.3, 0.1)
    assert changed.fresh and all(name.startswith("pooler.") for name in changed.fresh)
    assert changed.left_out == ["head.weight, head.bias (it reads the pooling mean)"]
    assert same(start.encoder, changed.encoder) and changed.tokenizer is start.tokenizer
    with pytest.raises(UserError, match=r"transformer.width changed, .* has the shape .* leave it as it was"):
        with_settings(start, {"transformer.width": 64})


def test_there_must_be_a_class_token_to_pool(tmp_path):
    make_encoder(class_token=True).save_pretrained(tmp_path / "with")
    assert FineTuning(init_from=str(tmp_path / "with"), pooling="cls").encoder.pooling == "cls"
    with pytest.raises(UserError, match="pooling: cls reads the class token, and class_token is false"):
        FineTuning(make_encoder(), pooling="cls")
