"""Contrastive pretraining: one Transformer for both towers, locks, chunks, resuming, panels, and what cannot be."""

import copy
import math

import mlflow
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_pairs import TRANSFORMER, make_encoders, make_pairs, make_rows, pair_config, write_pairs, write_tokenizer
from small_training import write_config

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.modules.contrastive import validation
from lit_pretrain.modules.contrastive.chunking import encode_in_chunks
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.contrastive.validation import suggestions
from lit_pretrain.objectives import Contrastive
from lit_pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The pairs as a file."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet", make_rows(60))


def make_module(sharing="none", encoders=None, **settings):
    torch.manual_seed(0)
    encoders = encoders or make_encoders()
    return ContrastivePretraining(**encoders, share_weights=sharing, embedding_width=16, seed=0, **settings)


def fit(module, pairs, caches, checkpoint=None, callbacks=(), **settings):
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "max_steps": 12,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": bool(callbacks),
        "enable_progress_bar": False,
    } | settings
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, make_pairs(pairs, caches), ckpt_path=checkpoint)
    return module


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# -- one Transformer


@pytest.mark.parametrize("sharing", ["blocks", "blocks_except_norm"])
def test_shared_weights_are_the_same_and_learn_from_both_sides(sharing):
    module = make_module(sharing)
    ours, theirs = (dict(tower.encoder.named_parameters()) for tower in module.towers.values())
    shared = {name for name in ours if name in theirs and ours[name] is theirs[name]}
    blocks = {name for name in ours if name.startswith("transformer.blocks.")}
    expected = {name for name in blocks if sharing == "blocks" or "_norm" not in name}
    assert shared == expected and shared
    separate = make_module()
    saved = sum(ours[name].numel() for name in shared)
    counts = [sum(one.numel() for one in each.parameters()) for each in (separate, module)]
    assert counts[0] - counts[1] == saved

    module.text_encoder.set_vocabulary(20)
    captions = {"input_ids": torch.arange(12).view(3, 4), "attention_mask": torch.ones(3, 4).bool()}
    text = module.embed_texts(captions)
    # Attention has no mask where nothing is padded, in chunks too.
    masks = []
    hook = lambda _, arguments: masks.append(arguments[1])  # noqa: E731
    with module.text_encoder.transformer.blocks[0].register_forward_pre_hook(hook):
        module.chunk_size = 2
        torch.testing.assert_close(module.embed_texts(captions | {"padded": False}), text)
        module.chunk_size = None
    assert masks == [None, None]
    picture = module.embed_pictures(torch.rand(3, 3, 16, 16))
    weights = [one for name, one in ours.items() if name in shared]
    by_text = torch.autograd.grad(text[:, 0].sum(), weights)
    by_picture = torch.autograd.grad(picture[:, 0].sum(), weights)
    for name, one, other in zip(sorted(shared), by_text, by_picture, strict=True):
        assert one.abs().max() > 0 and other.abs().max() > 0 and not torch.equal(one, other), name


def test_ngrams_that_nobody_has_counted_are_refused(pairs, tmp_path):
    encoders = make_encoders() | {"text_encoder": TextEncoder(transformer=TransformerConfig(**TRANSFORMER), ngrams=2)}
    with pytest.raises(UserError, match="text tower has ngrams.*start it from such a run"):
        fit(make_module(encoders=encoders), pairs, tmp_path)


def test_what_cannot_be_shared():
    deeper = make_encoders()["text_encoder"], make_encoders(depth=3)["vision_encoder"]
    with pytest.raises(UserError, match=r"share_weights: blocks .* differ in depth \(2 and 3\)"):
        make_module("blocks", dict(zip(("text_encoder", "vision_encoder"), deeper, strict=True)))
    # Layer norms may differ where they are not shared.
    mixed = make_encoders() | {"vision_encoder": make_encoders(norm_order="post")["vision_encoder"]}
    make_module("blocks_except_norm", copy.deepcopy(mixed))
    with pytest.raises(UserError, match="norm_order"):
        make_module("blocks", mixed)
    with pytest.raises(UserError, match=r"model.text.locked is True and model.vision.locked False"):
        make_module("blocks", text=TowerConfig(locked=True))


def test_the_pretrained_towers_blocks_are_taken(tmp_path):
    start = make_encoders()["vision_encoder"]
    start.save_pretrained(tmp_path / "vit")
    encoders = {"text_encoder": make_encoders()["text_encoder"]}
    module = make_module("blocks", encoders, vision=TowerConfig(init_from=str(tmp_path / "vit")))
    block = module.text_encoder.transformer.blocks[1]
    assert block is module.vision_encoder.transformer.blocks[1]
    torch.testing.assert_close(block.feed_forward.expand.weight, start.transformer.blocks[1].feed_forward.expand.weight)
    assert module.describe()["vision_init_from"].endswith("vit") and module.describe()["text_init_from"] == "scratch"
    with pytest.raises(UserError, match="holds a VisionEncoder, and the text tower is a TextEncoder"):
        make_module("none", {"vision_encoder": start}, text=TowerConfig(init_from=str(tmp_path / "vit")))
    with pytest.raises(UserError, match="either model.vision_encoder.*or model.vision.init_from"):
        make_module("none", encoders)


def test_a_tower_of_a_pretrained_ones_shape_has_new_weights(tmp_path):
    make_encoders()["vision_encoder"].save_pretrained(tmp_path / "vit")
    start = VisionEncoder.from_pretrained(tmp_path / "vit")
    encoders = {"text_encoder": make_encoders()["text_encoder"]}
    fresh = make_module("none", encoders, vision=TowerConfig(init_from=str(tmp_path / "vit"), pretrained=False))
    assert fresh.vision_encoder.settings() == start.settings()
    block, other = (encoder.transformer.blocks[0] for encoder in (fresh.vision_encoder, start))
    assert not torch.equal(block.attention.projection.weight, other.attention.projection.weight)
    assert fresh.describe()["vision_init_from"] == "scratch"
    with pytest.raises(UserError, match="pretrained is false without an init_from"):
        TowerConfig(pretrained=False)


# -- locks


def test_locked_for_good_and_for_a_while(pairs, tmp_path):
    module = make_module(
        text=TowerConfig(locked=True, unlock_after=4),
        vision=TowerConfig(locked=True),
        encoders=make_encoders(dropout=0.1),
    )
    states = {}

    class Keep(ModelCheckpoint):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            states[trainer.global_step] = state_of(pl_module)

    fit(module, pairs, tmp_path, callbacks=[Keep(save_top_k=0)], max_steps=6)

    def moved(start, stop):
        return {name for name, value in states[start].items() if not torch.equal(value, states[stop][name])}

    heads = {"text_tower.projection.weight", "vision_tower.projection.weight", "objective.log_scale"}
    assert moved(1, 4) == heads
    assert moved(4, 6) == heads | {name for name in states[4] if name.startswith("text_tower.encoder.")}
    # Where nothing learns there is no dropout.
    module.train()
    assert not module.vision_encoder.training and module.text_encoder.training
    with pytest.raises(UserError, match="model.text.unlock_after unlocks the tower at step 40"):
        fit(make_module(text=TowerConfig(locked=True, unlock_after=40)), pairs, tmp_path)
    with pytest.raises(UserError, match="unlock_after is 3 with locked: False"):
        TowerConfig(unlock_after=3)


# -- chunks


@pytest.mark.parametrize("sharded", [False, True])
def test_a_graph_in_chunks_keeps_no_activations_and_draws_dropout_alike(sharded):
    module = make_module(encoders=make_encoders(dropout=0.2))
    module.train()
    images = torch.rand(12, 3, 16, 16)
    tower, weights = module.vision_tower, [*module.vision_tower.parameters()]

    def kept_and_gradients(chunk_size):
        held = 0

        def count(tensor):
            nonlocal held
            held += tensor.numel()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            embedded = encode_in_chunks(tower, {"images": images}, chunk_size, weights, sharded)
        before, drawn = held, torch.get_rng_state()
        gradients = torch.autograd.grad(embedded.square().mul(torch.arange(16.0)).sum(), weights)
        # The second pass leaves the draws of what follows as they are.
        assert torch.equal(drawn, torch.get_rng_state())
        return before, embedded, gradients

    kept, whole, _ = kept_and_gradients(None)
    kept_in_chunks, embedded, gradients = kept_and_gradients(4)
    assert kept_in_chunks < kept / 20
    # The same draws by hand: each chunk's forward pass in turn.
    torch.manual_seed(3)
    by_hand = torch.cat([tower({"images": part}) for part in images.split(4)])
    assert torch.equal(embedded, by_hand) and not torch.equal(embedded, whole)
    expected = torch.autograd.grad(by_hand.square().mul(torch.arange(16.0)).sum(), weights)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_locked_tower_is_encoded_once():
    module = make_module(vision=TowerConfig(locked=True))
    images, seen = torch.rand(8, 3, 16, 16), []
    module.vision_encoder.register_forward_hook(lambda *call: seen.append(len(call[2])))
    weights = [*module.vision_tower.projection.parameters()]

    def gradients(chunk_size):
        module.chunk_size = chunk_size
        return torch.autograd.grad(module.embed_pictures(images).mul(torch.arange(16.0)).sum(), weights)

    whole = gradients(None)
    seen.clear()
    torch.testing.assert_close(gradients(3), whole)
    assert seen == [3, 3, 2]


def test_chunks_in_bf16_spoil_nothing_that_follows():
    module = make_module()
    tower, images = module.vision_tower, torch.rand(12, 3, 16, 16)
    weights = [*tower.parameters()]

    def gradients(chunk_size):
        with torch.autocast("cpu", torch.bfloat16):
            embedded = encode_in_chunks(tower, {"images": images}, chunk_size, weights)
            # As what is replayed does: the same weights once more, in the same context.
            again = tower.encoder.forward_features(images[:2]).float()
        return torch.autograd.grad(embedded.mul(torch.arange(16.0)).sum() + again.square().mean(), weights)

    for one, other in zip(gradients(5), gradients(None), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(other.abs().max()))


def test_accumulation_and_batches_of_one_are_refused(pairs, tmp_path):
    with pytest.raises(UserError, match="accumulate_grad_batches is 2.*model.chunk_size"):
        fit(make_module(), pairs, tmp_path, accumulate_grad_batches=2)
    trainer = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    # A validation before makes no difference, nor to the bias that waits for the batch's size.
    module = make_module(objective=Contrastive(loss="siglip"))
    trainer.validate(module, make_pairs(pairs, tmp_path), verbose=False)
    with pytest.raises(UserError, match="accumulate_grad_batches is 2"):
        fit(module, pairs, tmp_path, accumulate_grad_batches=2)
    fit(module, pairs, tmp_path, max_steps=1)
    assert float(module.objective.logit_bias) == pytest.approx(-math.log(7), abs=0.01)
    with pytest.raises(UserError, match="batch of 1 has no other pair"):
        trainer.fit(make_module(), make_pairs(pairs, tmp_path, batch_size=1))


def test_embeddings_that_are_not_finite_have_no_recall(pairs, tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module, data = make_module(), make_pairs(pairs, tmp_path)
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        module.vision_encoder.transformer.blocks[0].attention.query_key_value.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="The embeddings of pictures of .* are not finite"):
        trainer.validate(module, data, verbose=False)


# -- going on


def with_scalars(checkpoint, path):
    """A checkpoint as earlier versions wrote it, whose temperature and bias have no dimension."""
    content = torch.load(checkpoint, weights_only=True)
    (optimizer,) = content["optimizer_states"]
    states = [content["state_dict"], *optimizer["state"].values()]
    scalars = [(state, name) for state in states for name, value in state.items() if value.shape == (1,)]
    assert len(scalars) == 6
    for state, name in scalars:
        state[name] = state[name].squeeze()
    torch.save(content, path)
    return path


def test_resumed_in_mid_epoch_is_the_same_to_the_bit(pairs, tmp_path):
    settings = {"encoders": None, "chunk_size": 3, "objective": Contrastive(loss="siglip", duplicates="multi_positive")}

    def make():
        return make_module("blocks_except_norm", **settings | {"objective": copy.deepcopy(settings["objective"])})

    save = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=8, save_top_k=-1)
    straight = fit(make(), pairs, tmp_path, callbacks=[save])
    (checkpoint,) = (tmp_path / "saved").glob("step=8.ckpt")
    resumed = fit(make(), pairs, tmp_path, checkpoint=with_scalars(checkpoint, tmp_path / "old.ckpt"))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

    # And without any data or config.
    loaded = ContrastivePretraining.from_checkpoint(checkpoint)
    assert loaded.share_weights == "blocks_except_norm" and loaded.objective.duplicates == "multi_positive"
    assert loaded.text_encoder.transformer.blocks[0].attention is loaded.vision_encoder.transformer.blocks[0].attention
    assert loaded.tokenizer.hash == straight.tokenizer.hash
    with pytest.raises(UserError, match=r"does not fit .*share_weights \(blocks_except_norm there, none here\)"):
        fit(make_module(objective=Contrastive(loss="siglip")), pairs, tmp_path, checkpoint=checkpoint)


# -- through the real entry


def test_a_run_learns_and_shows_it(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validation, "HARDLY_BETTER_THAN_CHANCE", 0.0)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = pair_config(
        pairs,
        trainer={"max_steps": 60, "val_check_interval": 30, "callbacks": [{"class_path": "Panels"}]},
        model={"optimizer": {"learning_rate": 3e-3}, "objective": {"class_path": "Contrastive"}},
        caption_columns=["title"],
        tokenizer=write_tokenizer(tmp_path / "tokenizer"),
    )
    path = write_config(tmp_path / "pairs.yaml", config)

    assert main(["fit", "--config", str(path)]) == 0

    # A suggestion is made once, and not by the check before the training.
    said = [line for line in capsys.readouterr().err.splitlines() if "of what chance has" in line]
    assert len(said) == 1 and said[0].startswith("Step 30: ")

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (record,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    metrics, parameters = record.data.metrics, record.data.params
    # Three colours are easily told apart: chance is 1/12, 1 in 4 are of the right colour.
    assert metrics["validation/text_to_picture/recall_at_5"] > 0.6
    assert metrics["validation/loss_over_chance"] < 0.95 and metrics["train/loss"] < math.log(8)
    assert parameters["model_facts.objectives"] == "clip" and parameters["data_facts.pictures"] == "60"
    shown = {
        file.path
        for folder in client.list_artifacts(record.info.run_id)
        for file in client.list_artifacts(record.info.run_id, folder.path)
    }
    assert any("text_to_picture" in name for name in shown) and any("picture_to_text" in name for name in shown)

    # Documents are no pairs.
    wrong = ["--data", "ImageDataModule", "--data.path", str(pairs), "--data.batch_size", "8"]
    assert main(["fit", "--config", str(path), *wrong]) == 2


def test_suggestions_say_what_to_change():
    figures = {
        "loss": 4.15,
        "loss_over_chance": 0.998,
        "temperature": 0.01,
        "modality_gap": 1.5,
        "text_effective_rank": 1.2,
        "picture_effective_rank": 60.0,
    }
    found = suggestions(figures, {"duplicate_captions": 0.4}, Contrastive(), 100, 64)
    assert set(found) == {
        "loss_over_chance",
        "temperature",
        "modality_gap",
        "text_effective_rank",
        "duplicate_captions",
    }
    assert (
        "data.caption_columns" in found["loss_over_chance"] and "mask or multi_positive" in found["duplicate_captions"]
    )
    good = {"loss": 1.0, "loss_over_chance": 0.3, "temperature": 0.05, "modality_gap": 0.8}
    good |= {"text_effective_rank": 30.0, "picture_effective_rank": 30.0}
    assert suggestions(good, {"duplicate_captions": 0.4}, Contrastive(duplicates="mask"), 100, 64) == {}
