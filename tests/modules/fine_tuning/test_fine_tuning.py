"""Fine-tuning from scratch and from what was pretrained, on pictures and on texts."""

import copy
from pathlib import Path

import datasets
import pytest
import torch
from labelled_texts import TOKENIZER, make_texts, write_texts
from labelled_texts import make_encoder as make_text_encoder
from lightning import Callback
from PIL import Image
from small_pictures import COLORS, make_encoder, make_pictures, write_pictures

from lit_pretrain.backbone import TextEncoder
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.errors import UserError
from lit_pretrain.modules import FineTuning, VisionPretraining
from lit_pretrain.modules.fine_tuning import probe_head
from lit_pretrain.modules.fine_tuning.picture_mixing import MixingConfig
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig
from lit_pretrain.objectives import MaskedImageModeling
from lit_pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet")


@pytest.fixture
def data(pictures, tmp_path):
    return make_pictures(pictures, tmp_path / "caches")


@pytest.fixture
def texts(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    path = write_texts(tmp_path / "texts.parquet")
    return lambda **settings: make_texts(path, tmp_path / "tokenizer", cache_directory=str(tmp_path), **settings)


def trainer(**settings):
    defaults = {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_checkpointing": False}
    return Trainer(**defaults | {"max_steps": 60, "enable_progress_bar": False} | settings)


def from_scratch(encoder=None, **settings):
    torch.manual_seed(0)
    defaults = {"optimizer": AdamWConfig(learning_rate=3e-3), "seed": 0}
    return FineTuning(encoder or make_encoder(), **defaults | settings)


@pytest.fixture
def pretrained(data, tmp_path):
    """A checkpoint of two steps of masked image modelling."""
    module = VisionPretraining(make_encoder(), [MaskedImageModeling()], seed=0)
    fit = trainer(max_steps=2)
    fit.fit(module, data)
    fit.save_checkpoint(tmp_path / "pretrained.ckpt")
    return tmp_path / "pretrained.ckpt", module


def test_pictures_are_learned_and_the_checkpoint_answers_alone(data, tmp_path):
    module = from_scratch(label_smoothing=0.1)
    fit = trainer()
    fit.fit(module, data)
    (result,) = fit.test(module, data, verbose=False)
    assert result["test/accuracy"] > 0.8 and result["test/loss"] < 0.8 and 0 <= result["test/f1"] <= 1
    assert module.monitor == ("validation/accuracy", "max")
    fit.save_checkpoint(tmp_path / "fine.ckpt")
    loaded = FineTuning.from_checkpoint(tmp_path / "fine.ckpt")
    assert loaded.classes == ["apple", "leaf", "sea"]
    batch = {"images": torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)}
    assert torch.equal(loaded.logits(batch), module.eval().logits(batch))
    plain = [Image.new("RGB", (40, 30), color) for color in COLORS.values()]
    plain[0].save(tmp_path / "apple.png")
    answers = loaded.predict([tmp_path / "apple.png", *plain[1:]], batch_size=2)
    assert [sum(one["probability"].values()) for one in answers] == pytest.approx([1, 1, 1])
    for alone in (plain[0], tmp_path / "apple.png", str(tmp_path / "apple.png")):
        assert [answer["label"] for answer in loaded.predict(alone)] == [answers[0]["label"]]
    rows = trainer(default_root_dir=tmp_path).predict(module, data)
    assert set(rows[0]["label"]) <= set(loaded.classes) and rows[0]["embedding"].shape[1] == 32
    assert torch.allclose(rows[0]["probability"].sum(dim=1), torch.ones(len(rows[0]["label"])))


@pytest.mark.parametrize(
    ("settings", "metric", "least"),
    [
        ({}, "accuracy", 0.9),
        ({"label_column": "topics"}, "f1_micro", 0.9),
        ({"label_column": "score", "text_pair_column": "other"}, "spearman", 0.5),
    ],
    ids=["one class", "several classes", "a number of a pair"],
)
def test_texts_are_learned(texts, tmp_path, settings, metric, least):
    module = from_scratch(make_text_encoder(pooling="mean"))
    fit = trainer(max_steps=160)
    # What validation makes in inference mode must serve the training too.
    fit.validate(module, texts(**settings), verbose=False)
    fit.fit(module, texts(**settings))
    assert "train/padding_share" in fit.callback_metrics
    (result,) = fit.test(module, texts(**settings), verbose=False)
    assert result[f"test/{metric}"] > least, result
    fit.save_checkpoint(tmp_path / "fine.ckpt")
    loaded = FineTuning.from_checkpoint(tmp_path / "fine.ckpt")
    sample = ("the army builds new roads", "the army builds new roads")
    (answer,) = loaded.predict([sample if "text_pair_column" in settings else sample[0]])
    # One text, or one pair, is one sample, not one a character or a part.
    assert loaded.predict(sample if "text_pair_column" in settings else sample[0]) == [answer]
    # Alone or in a batch of longer ones: padding changes nothing.
    longer = (sample[0] + " the common law" * 4, sample[1])
    again = loaded.predict([longer, sample] if "text_pair_column" in settings else [longer[0], sample[0]])[1]
    assert again.get("label") == answer.get("label")
    assert again.get("value", 0.0) == pytest.approx(answer.get("value", 0.0), abs=1e-5)


def test_it_starts_from_the_pretrained_encoder_or_its_architecture(pretrained):
    path, module = pretrained
    tuned = FineTuning(init_from=str(path))
    assert all(torch.equal(one, module.encoder.state_dict()[name]) for name, one in tuned.encoder.state_dict().items())
    assert tuned.lineage["init_from_objectives"] == "MaskedImageModeling" and tuned.lineage["init_from_step"] == "2"
    fresh = FineTuning(init_from=str(path), pretrained=False)
    assert fresh.encoder.settings() == module.encoder.settings() and fresh.lineage["init_from"] == "scratch"
    name = "transformer.blocks.0.feed_forward.expand.weight"
    # Of a large one that would be as much memory as the training's.
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text(), "the checkpoint stays mapped"
    assert not torch.equal(fresh.encoder.state_dict()[name], module.encoder.state_dict()[name])


def test_another_pooling_names_what_is_new_and_what_is_left_out(texts, tmp_path):
    encoder = make_text_encoder(pooling="pooler", vocabulary_size=TOKENIZER.vocabulary_size)
    encoder.save_pretrained(tmp_path / "bert")
    TOKENIZER.save(tmp_path / "bert")
    tuned = FineTuning(init_from=str(tmp_path / "bert"), pooling="mean", dropout=0.1)
    assert tuned.start.left_out == ["pooler.dense.bias", "pooler.dense.weight"] and tuned.start.fresh == []
    assert "left out pooler.dense.bias" in tuned.start.told() and tuned.encoder.config.dropout == 0.1
    assert tuned.tokenizer.hash == TOKENIZER.hash
    attending = FineTuning(init_from=str(tmp_path / "bert"), pooling="map")
    assert attending.start.fresh and all(name.startswith("pooler.attention") for name in attending.start.fresh)
    # The weights' own tokenizer is the data's, where that has none of its own.
    data = make_texts(write_texts(tmp_path / "texts.parquet"), cache_directory=str(tmp_path))
    trainer(max_steps=1).fit(tuned, data)
    assert data.tokenizer.hash == TOKENIZER.hash


def test_frozen_parts_stay(data, pretrained):
    path, module = pretrained
    before = module.encoder.state_dict()
    probe = FineTuning(init_from=str(path), freeze=FreezingConfig("all"), optimizer=AdamWConfig(3e-2), seed=0)
    trainer(max_steps=30).fit(probe, data)
    assert all(torch.equal(one, before[name]) for name, one in probe.encoder.state_dict().items())
    assert float(probe.head.weight.abs().max()) > 0.05
    half = FineTuning(init_from=str(path), freeze=FreezingConfig(1), dropout=0.5, seed=0)
    trainer(max_steps=2).fit(half, data)
    moved = {
        name.split(".")[2]
        for name, one in half.encoder.state_dict().items()
        if name.startswith("transformer.blocks") and not torch.equal(one, before[name])
    }
    assert moved == {"1"} and torch.equal(half.encoder.embeddings.position, module.encoder.embeddings.position)
    half.train()
    assert not half.encoder.transformer.blocks[0].training and half.encoder.transformer.blocks[1].training


@pytest.mark.parametrize("modality", ["pictures", "texts"])
def test_blocks_are_unfrozen_one_after_the_other(modality, request):
    data = request.getfixturevalue("data" if modality == "pictures" else "texts")
    encoder = make_encoder() if modality == "pictures" else make_text_encoder()
    module = from_scratch(encoder, freeze=FreezingConfig(unfreeze_every=2), gradient_clip_norm=1e-3)
    if modality == "texts":
        data = data()
        encoder.set_vocabulary(TOKENIZER.vocabulary_size)
    start = copy.deepcopy(module.encoder.state_dict())
    moved, norms = {}, {}

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.head.weight.data.mul_(100)  # so that the encoder has gradients of the head's size
            moving = [*pl_module.head.parameters(), *pl_module.encoder.transformer.final_norm.parameters()]

            def note(*_):
                # As they were clipped, which no callback sees.
                gradients = [parameter.grad for parameter in moving]
                norms[trainer.global_step + 1] = float(torch.nn.utils.get_total_norm(gradients))

            trainer.optimizers[0].register_step_post_hook(note)

        def on_train_batch_end(self, trainer, pl_module, *rest):
            now = pl_module.encoder.state_dict().items()
            moved[trainer.global_step] = {name for name, value in now if not torch.equal(value, start[name])}

    trainer(max_steps=8, callbacks=[Watch()]).fit(module, data)
    # Layers: 3 what follows the last block, from the start (of texts nothing); 2 and 1 the blocks; 0 the embeddings.
    assert {name.split(".")[1] for name in moved[2]} == ({"final_norm"} if modality == "pictures" else set())
    # All of the norm that gradients are clipped to is that of what moves.
    assert [norms[1], norms[2]] == pytest.approx([1e-3] * 2, rel=1e-3) and norms[3] < 0.9e-3
    assert any("blocks.1" in name for name in moved[4]) and not any("blocks.0" in name for name in moved[4])
    assert any("blocks.0" in name for name in moved[6]) and not any("embeddings" in name for name in moved[6])
    assert any("embeddings.position" in name for name in moved[8])


def test_layers_have_rates_of_their_own_and_the_logs_tell_them(data):
    module = from_scratch(layer_decay=0.5, head_factor=2.0, schedule=ScheduleConfig(warm_up=2))
    fit = trainer(max_steps=4, log_every_n_steps=1)
    fit.fit(module, data)
    groups = fit.optimizers[0].param_groups
    assert {group["initial_lr"] for group in groups} == {3e-3 * factor for factor in (2.0, 1.0, 0.5, 0.25, 0.125)}
    held = [id(one) for group in groups for one in group["params"]]
    assert sorted(held) == sorted(id(one) for one in module.parameters())
    # The last of four steps after a warm-up of two: half of the rate, whatever the head's is.
    factors = {"": 1.0, "/head": 2.0, "/norm_and_pooling": 1.0, "/block_2": 0.5, "/block_1": 0.25, "/embeddings": 0.125}
    logged = {name: float(value) for name, value in fit.callback_metrics.items() if "learning_rate" in name}
    assert logged == pytest.approx({f"learning_rate{part}": 1.5e-3 * factor for part, factor in factors.items()})


@pytest.mark.parametrize("freezing", [FreezingConfig("all"), FreezingConfig(2, 9)], ids=["all", "every block"])
def test_a_pooling_that_is_new_is_trained_as_the_head_is(texts, tmp_path, freezing):
    encoder = make_text_encoder(vocabulary_size=TOKENIZER.vocabulary_size)
    encoder.save_pretrained(tmp_path / "bert")
    TOKENIZER.save(tmp_path / "bert")

    def make(start):
        return FineTuning(init_from=str(start), pooling="map", freeze=freezing, head_factor=10.0, seed=0)

    module, fit = make(tmp_path / "bert"), trainer(max_steps=2)
    before = copy.deepcopy(module.encoder.state_dict())
    fit.fit(module, texts())
    fit.save_checkpoint(tmp_path / "two.ckpt")
    rates = {id(one): group["initial_lr"] for group in fit.optimizers[0].param_groups for one in group["params"]}
    pooler = dict(module.encoder.pooler.named_parameters())
    assert pooler and {rates[id(one)] for one in pooler.values()} == {1e-2} == {rates[id(module.head.weight)]}
    moved = {name for name, value in module.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert "pooler.attention.latent" in moved and all(name.startswith("pooler") for name in moved)
    # As the command line resumes it: the encoder is the checkpoint's, and what was new goes on as such.
    resumed, fit = make(tmp_path / "two.ckpt"), trainer(max_steps=4)
    fit.fit(resumed, texts(), ckpt_path=str(tmp_path / "two.ckpt"))
    head = [one for group in fit.optimizers[0].param_groups if group["label"] == "head" for one in group["params"]]
    assert {id(one) for one in resumed.encoder.pooler.parameters()} < set(map(id, head))


def test_the_head_can_start_as_a_linear_probe(data):
    module = from_scratch(linear_probe_first=True, optimizer=AdamWConfig(learning_rate=1e-12))
    fit = trainer(max_steps=1)
    fit.fit(module, data)
    features, labels = [], []
    for batch in data.evaluation_loader("train"):
        features.append(module.eval().features(batch).detach())
        labels.append(batch["label"])
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = torch.cat(features).numpy(), torch.cat(labels).numpy()
    scaler = StandardScaler().fit(features)
    theirs = LogisticRegression(C=1.0, max_iter=1000, tol=1e-6).fit(scaler.transform(features), labels)
    ours = module.head(torch.from_numpy(features)).softmax(dim=1).detach().numpy()
    assert abs(ours - theirs.predict_proba(scaler.transform(features))).max() < 5e-3


def test_a_probe_of_some_samples_sees_all_labels_of_a_sorted_file(texts, tmp_path, monkeypatch):
    path = write_texts(tmp_path / "texts.parquet")
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).sort("label")
    table.to_parquet(str(tmp_path / "sorted.parquet"))
    data = make_texts(tmp_path / "sorted.parquet", tmp_path / "tokenizer", cache_directory=str(tmp_path), batch_size=5)
    monkeypatch.setattr("lit_pretrain.modules.fine_tuning.probe_head.MOST_SAMPLES", 30)
    seen = []
    fitted = probe_head.fit_linear_probe
    monkeypatch.setattr(
        probe_head, "fit_linear_probe", lambda features, labels, c: seen.append(labels) or fitted(features, labels, c)
    )
    module, reduced = from_scratch(make_text_encoder(pooling="mean"), linear_probe_first=True), []
    module.encoder.register_forward_hook(lambda *_: reduced.append(torch.is_autocast_enabled("cpu")))
    trainer(max_steps=1, precision="bf16-mixed").fit(module, data)
    # The features are read in the precision of the steps.
    assert len(reduced) > 6 and all(reduced)
    (labels,) = seen
    # 90 training samples in 18 batches, every third of which is taken.
    shares = torch.bincount(torch.cat([batch["label"] for batch in data.evaluation_loader("train")])) / 90
    assert len(labels) == 30
    # Within the batch in which one label follows the other.
    torch.testing.assert_close(torch.bincount(labels) / 30, shares, rtol=0, atol=5 / 30)


def test_mixed_pictures_are_drawn_from_the_step_alone(data):
    def weights(**settings):
        torch.manual_seed(0)
        module = from_scratch(**settings)
        trainer(max_steps=3).fit(module, data)
        return module.head.weight.detach()

    mixing = MixingConfig(mixup=0.8, cutmix=1.0)
    first = weights(mixing=mixing)
    import numpy

    numpy.random.seed(7)
    assert torch.equal(first, weights(mixing=mixing)) and not torch.equal(first, weights())


def test_class_weights_by_hand():
    module = from_scratch(class_weights="balanced")
    module.facts = LabelFacts("single_label", ["a", "b"], [30, 10], 40)
    assert module.weights_of_classes().tolist() == pytest.approx([40 / 60, 40 / 20])
    module.facts = LabelFacts("multi_label", ["a", "b"], [30, 10], 40)
    assert module.weights_of_classes().tolist() == pytest.approx([1 / 3, 3.0])
    module.class_weights = [1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="has 3 values for 2 classes"):
        module.weights_of_classes()


def test_mistakes_get_a_sentence(data, pictures, tmp_path, pretrained, texts):
    path, _ = pretrained
    with pytest.raises(UserError, match="give one of the two"):
        FineTuning()
    with pytest.raises(UserError, match="give one of the two"):
        FineTuning(make_encoder(), init_from=str(path))
    with pytest.raises(UserError, match="does not exist"):
        FineTuning(init_from=str(tmp_path / "nothing.ckpt"))
    with pytest.raises(UserError, match="nor is it a directory of public weights"):
        FineTuning(init_from="no-such-run")
    unlabelled = make_pictures(pictures, tmp_path / "caches", label_column=None)
    with pytest.raises(UserError, match="needs labels"):
        trainer().fit(from_scratch(), unlabelled)
    with pytest.raises(UserError, match="encoder is one of pictures, and the data holds texts"):
        trainer().fit(FineTuning(init_from=str(path)), texts())
    with pytest.raises(UserError, match="encoder is one of texts, and the data holds pictures"):
        trainer().fit(from_scratch(make_text_encoder()), data)
    with pytest.raises(UserError, match="blocks is 5, and the encoder has 2"):
        trainer().fit(from_scratch(freeze=FreezingConfig(5)), data)
    with pytest.raises(UserError, match="unfreezes the first layer at step 150"):
        trainer().fit(from_scratch(freeze=FreezingConfig(unfreeze_every=50)), data)
    with pytest.raises(UserError, match="32 positions|longer than"):
        trainer().fit(from_scratch(make_text_encoder()), texts(maximum_length=64))
    with pytest.raises(UserError, match="is a checkpoint of VisionPretraining"):
        FineTuning.from_checkpoint(path)
    broken = torch.load(path, weights_only=True)
    del broken["state_dict"]["encoder.embeddings.position"]
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(UserError, match="missing \\['embeddings.position'\\]"):
        FineTuning(init_from=str(tmp_path / "broken.ckpt"))


def test_a_checkpoint_of_other_classes_or_another_tokenizer_is_refused(texts, tmp_path):
    module = from_scratch(make_text_encoder())
    fit = trainer(max_steps=1)
    fit.fit(module, texts())
    fit.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(UserError, match="knows the classes gives, takes, the data has the classes land, law"):
        trainer().test(from_scratch(make_text_encoder()), texts(label_column="topics"), str(tmp_path / "two.ckpt"))
    other = TextEncoder(TOKENIZER.vocabulary_size, transformer=make_text_encoder().config, max_positions=32)
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    checkpoint["lit_pretrain"]["tokenizer_hash"] = "0" * 16
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="was trained with tokenizer 0000"):
        trainer().test(from_scratch(other), texts(), str(tmp_path / "foreign.ckpt"))


def test_ngrams_that_nobody_has_counted_are_refused(texts):
    with pytest.raises(UserError, match=r"encoder has ngrams.*set model\.init_from to such a run"):
        trainer().fit(FineTuning(make_text_encoder(ngrams=2, ngram_rows=20), seed=0), texts())
