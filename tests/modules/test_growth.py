"""Encoders that grow: what they compute stays the same, everything new learns, and what cannot grow is told."""

import mlflow
import pytest
import torch
from labelled_texts import TOKENIZER, write_texts
from small_training import training_of, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import FineTuning, TextPretraining
from lit_pretrain.modules.freezing import FreezingConfig, freeze
from lit_pretrain.modules.growth import GrowthConfig, grow
from lit_pretrain.modules.starting_points import StartingPoint, with_settings, without_weights

IDS = torch.arange(2, 38).view(3, 12) % TOKENIZER.vocabulary_size
MASK = torch.arange(12) < torch.tensor([[12], [7], [3]])


def text(transformer, **settings):
    config = TransformerConfig(**{"width": 16, "heads": 2, "feed_forward_width": 24} | transformer)
    return TextEncoder(TOKENIZER.vocabulary_size, transformer=config, **{"max_positions": 16} | settings)


def pictures(transformer, **settings):
    config = VisionTransformerConfig(**{"width": 16, "heads": 2, "depth": 1} | transformer)
    return VisionEncoder(transformer=config, **{"image_size": 8, "patch_size": 2} | settings)


@torch.no_grad()
def trained(encoder):
    """A starting point with an encoder whose every parameter is moved, as training does."""
    torch.manual_seed(1)
    for name, parameter in encoder.named_parameters():
        scale = 0.3 if "norm" in name or "gamma" in name else 0.1
        parameter += scale * torch.randn_like(parameter)
    if isinstance(encoder, TextEncoder) and encoder.lacks_ngrams:
        encoder.embeddings.ngrams.set_keys(torch.tensor([4 * 2**20 + 5, 6 * 2**20 + 7]))
    return StartingPoint(encoder.eval(), TOKENIZER, {"init_from": "run"})


def features(encoder):
    """Features of tokens that are real, and pooled ones."""
    if isinstance(encoder, VisionEncoder):
        tokens = encoder.forward_features(torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8))
        return tokens, encoder.forward_head(tokens)
    tokens = encoder.forward_features(IDS, MASK)
    return tokens[MASK], encoder.forward_head(tokens, MASK)


ENCODERS = {
    "post": lambda: text({"depth": 2}),
    "post, epsilon of RoBERTa": lambda: text({"depth": 2, "norm_epsilon": 1e-5}),
    "post, much of everything": lambda: text(
        {"depth": 1, "layer_scale": 0.0, "query_key_norm": True, "activation": "swiglu", "bias": False},
        pooling="map",
        ngrams=2,
        ngram_rows=4,
    ),
    "pre": lambda: text({"depth": 1, "norm_order": "pre", "stochastic_depth": 0.2, "dropout": 0.1}, pooling="pooler"),
    "pre, causal": lambda: text(
        {"depth": 1, "norm_order": "pre"}, embedding_norm=False, causal=True, pooling="end_of_text"
    ),
    "post, RMS": lambda: text({"depth": 1, "norm": "rms"}),
    "pre, as ModernBERT": lambda: text(
        {"depth": 2, "norm_order": "pre", "activation": "geglu", "norm_bias": False, "first_attention_norm": False}
        | {"attention_window": 1, "global_every": 2},
        positions="rotary",
        local_rotary_base=7.0,
    ),
    "no block, post": lambda: text({"depth": 0}, positions="rotary", segments=0, ngrams=2, ngram_rows=4),
    "no block, pre": lambda: text({"depth": 0, "norm_order": "pre", "norm_epsilon": 1e-5}, embedding_norm=False),
    "pictures": lambda: pictures({"layer_scale": 1e-5}, pooling="map", registers=2),
    "pictures, post": lambda: pictures({"norm_order": "post", "norm_epsilon": 1e-12}, norm_after_pooling=True),
}


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_deeper_encoders_compute_the_same_and_all_that_is_new_learns(make):
    start = trained(make())
    deep = start.encoder.config.depth + 2
    grown = grow(start, GrowthConfig(depth=deep))
    # Each token has lost an epsilon of its own, which no weight can give back to all.
    tolerance = (
        1e-5 if start.encoder.config.norm_epsilon == 1e-5 and start.encoder.config.norm_order == "post" else 1e-6
    )
    for before, after in zip(features(start.encoder), features(grown.encoder), strict=True):
        torch.testing.assert_close(after, before, atol=tolerance, rtol=tolerance)
    assert grown.lineage == {"init_from": "run", "grown_from_depth": str(deep - 2)} and grown.tokenizer is TOKENIZER
    encoder, old = grown.encoder, set(start.encoder.state_dict())
    assert encoder.config.depth == deep and len(encoder.transformer.blocks) == deep and not encoder.training
    added = [f"transformer.blocks.{index}." for index in (deep - 2, deep - 1)]
    moved = {name for name in encoder.state_dict() if f"{deep - 1}.feed_forward_norm" in name}
    expected = {name for name in encoder.state_dict() if name.startswith(tuple(added))}
    assert set(grown.fresh) == expected - (moved if encoder.config.norm_order == "post" else set())
    assert old <= set(encoder.state_dict())

    # Nothing is dead: neither where a branch ends nor before it.
    first = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.0)
    encoder.train()
    for _ in range(3):
        pooled = features(encoder)[1]
        (pooled - torch.linspace(-1, 1, 16)).abs().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = [name for name in expected if torch.equal(encoder.state_dict()[name], first[name])]
    assert not kept


def test_an_encoder_without_blocks_chooses_those_it_gets():
    start = trained(ENCODERS["no block, post"]())
    config = GrowthConfig(depth=1, heads=4, feed_forward_width=40, norm_order="pre", activation="swiglu")
    grown = grow(start, config).encoder
    assert (grown.config.heads, grown.config.norm_order, grown.config.final_norm) == (4, "pre", False)
    assert grown.transformer.blocks[0].feed_forward.contract.weight.shape == (16, 40)
    assert grown.embeddings.ngrams.known
    for before, after in zip(features(start.encoder), features(grown), strict=True):
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    # From a norm at the end to one in each block.
    start = trained(text({"depth": 0, "norm_order": "pre"}))
    grown = grow(start, GrowthConfig(depth=2, norm_order="post"))
    for before, after in zip(features(start.encoder), features(grown.encoder), strict=True):
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    # With all that was there frozen, what is new is trained alone.
    freeze(grown.encoder, FreezingConfig("all"), grown.fresh)
    assert [name for name, one in sorted(grown.encoder.named_parameters()) if one.requires_grad] == grown.fresh
    # What else is changed afterwards forgets nothing, and the same shape with random weights is no growth at zero.
    changed = with_settings(grown, {"pooling": "map", "transformer.dropout": 0.2})
    assert {*grown.fresh, "pooler.attention.latent"} <= set(changed.fresh)
    assert "(grown from depth 0; new pooler.* (13 tensors), transformer.*" in changed.told()
    random = without_weights(grown)
    assert random.encoder.settings() == grown.encoder.settings() and random.lineage["grown_from_depth"] == "0"
    assert random.encoder.transformer.blocks[1].attention.projection.weight.any()


def test_positions_of_texts_are_interpolated():
    start = trained(text({"depth": 1}))
    grown = grow(start, GrowthConfig(max_positions=31))
    rows = [one.encoder.embeddings.position.weight for one in (start, grown)]
    assert grown.encoder.max_positions == 31 and torch.equal(rows[1][::2], rows[0]) and not grown.fresh
    torch.testing.assert_close(rows[1][1::2], (rows[0][1:] + rows[0][:-1]) / 2)
    grown.encoder.forward_features(torch.zeros(1, 31, dtype=torch.int64))


@pytest.mark.parametrize("settings", [{"registers": 2}, {"class_position": False}, {"positions": "sincos"}], ids=str)
def test_larger_pictures_are_seen_as_they_were(settings):
    start = trained(pictures({}, **settings))
    grown = grow(start, GrowthConfig(image_size=12, depth=2))
    assert grown.encoder.image_size == 12 and grown.encoder.embeddings.grid == (6, 6)
    assert grown.lineage["grown_from_image_size"] == "8" and grown.lineage["grown_from_depth"] == "1"
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(grown.encoder(images), start.encoder(images), atol=1e-6, rtol=1e-6)


def test_what_cannot_grow_is_told():
    words, views = trained(text({"depth": 2})), trained(pictures({}))
    bag = trained(text({"depth": 0}, positions="rotary", embedding_norm=False, pooling="map"))
    coarse = {depth: trained(text({"depth": depth, "norm_epsilon": 1e-4})) for depth in (0, 2)}
    refused = [
        (words, {"depth": 1}, "grow.depth is 1, and the encoder of model.init_from has 2: give more"),
        (words, {"depth": 2}, "grow.depth is 2, .* has 2 already: leave it out, or give more"),
        (words, {"max_positions": 16}, "max_positions is 16, .* has 16 already"),
        (words, {"image_size": 16}, "grow.image_size is of pictures, .* of texts: give model.grow.max_positions"),
        (words, {"depth": 3, "heads": 4}, "grow.heads is of an encoder without blocks, and that .* has 2"),
        (bag, {"max_positions": 32}, "rotary positions, which take texts of any length"),
        (bag, {"depth": 1, "heads": 4}, "grow.heads would change the attention that .* pools with"),
        (bag, {"depth": 1}, "norm_order: post would normalise what .* does not .* set model.grow.norm_order to pre"),
        (trained(text({"depth": 0})), {"depth": 1, "heads": 3}, "grow.heads is 3, which does not divide .* width 16"),
        (coarse[0], {"depth": 1}, "norm_epsilon of 0.0001 changes .*: set model.grow.norm_order to pre"),
        (coarse[2], {"depth": 3}, "norm_epsilon of 0.0001 changes .*: leave model.grow.depth out"),
        (views, {"max_positions": 16}, "max_positions is of texts, .* of pictures: give model.grow.image_size"),
        (views, {"image_size": 4}, "image_size is 4, and the encoder of model.init_from has 8: give more"),
        (views, {"image_size": 13}, "image_size is 13, which the encoder's patches of 2 pixels do not divide"),
    ]
    for start, settings, sentence in refused:
        with pytest.raises(UserError, match=sentence):
            grow(start, GrowthConfig(**settings))
    for settings, sentence in [
        ({"heads": 2}, "grow.heads is of blocks that are added, and none is: give model.grow.depth"),
        ({"depth": 0}, "grow.depth is 0: give at least 1"),
    ]:
        with pytest.raises(UserError, match=sentence):
            GrowthConfig(**settings)
    for make in (TextPretraining, FineTuning):
        with pytest.raises(UserError, match="grow.depth lets the encoder of model.init_from grow, and that is not"):
            make(words.encoder, grow=GrowthConfig(depth=3))
    assert grow(words, GrowthConfig()) is words


def first_losses(runs, name):
    """Losses of a run's first training step, of the objectives that came with it; and its parameters."""
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("small").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    keys = [f"train/{objective}/loss" for objective in ("contrastive_spans", "bag_of_words")]
    return [client.get_metric_history(run.info.run_id, key)[0].value for key in keys], run.data.params


# What a run has started from stays what its record says when it goes on.
@pytest.mark.filterwarnings("error:Parameters that differ")
def test_stages_from_embeddings_to_blocks_to_labels(tmp_path, monkeypatch, capsys):
    """As configs/text/imdb.yaml and what follows it, by the command line."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    encoder = {"transformer": {"width": 32, "depth": 0}, "positions": "rotary", "segments": 0}
    spans = {"class_path": "ContrastiveSpans", "init_args": {"token_dropout": 0.5}}
    settings = {"objectives": [spans, {"class_path": "BagOfWords"}], "optimizer": {"learning_rate": 3e-3}}
    data = {"path": str(write_corpus(tmp_path / "corpus.jsonl", 40)), "vocabulary_size": 90, "sequence_length": 32}
    config = training_of(
        {
            "class_path": "TextPretraining",
            "init_args": settings
            | {"encoder": {"class_path": "TextEncoder", "init_args": encoder | {"ngrams": 2, "ngram_rows": 50}}},
        },
        {"class_path": "DocumentDataModule", "init_args": data | {"layout": "segments", "batch_size": 8}},
        {"max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 1},
    )
    bag = str(write_config(tmp_path / "bag.yaml", config))
    settings["objectives"] = [*settings["objectives"], {"class_path": "MaskedLanguageModeling"}]
    config["model"]["init_args"] = settings | {"init_from": "bag"}
    del config["data"]["init_args"]["vocabulary_size"]
    deeper = str(write_config(tmp_path / "deeper.yaml", config))
    name, growth = "--trainer.logger.init_args.run_name", ["--model.grow.depth", "2", "--model.grow.heads", "4"]

    def fit(path, run, *arguments):
        assert main(["fit", "--config", path, name, run, *arguments]) == 0

    fit(bag, "bag")
    fit(deeper, "same", "--trainer.max_steps", "1")
    capsys.readouterr()
    fit(deeper, "grown", *growth)
    assert "(grown from depth 0; new transformer.*" in capsys.readouterr().out
    expected, (found, facts) = first_losses(tmp_path / "runs", "same")[0], first_losses(tmp_path / "runs", "grown")
    assert found == pytest.approx(expected, abs=1e-6) and facts["model_facts.grown_from_depth"] == "0"
    fit(deeper, "halves", *growth, "--trainer.callbacks+", "text_corpus.StopAt3")
    # The run goes on from its own checkpoint, which has grown.
    assert main(["fit", "--ckpt_path", "halves"]) == 0
    found = (tmp_path / "runs").glob("small/*/checkpoints/last.ckpt")
    saved = {path.parents[1].name.partition("-")[0]: torch.load(path, weights_only=True) for path in found}
    one, other = saved["grown"], saved["halves"]
    assert one["global_step"] == other["global_step"] == 6
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
    assert one["lit_pretrain"]["lineage"] == other["lit_pretrain"]["lineage"]
    keys = "encoder.embeddings.ngrams.keys"
    assert torch.equal(one["state_dict"][keys], saved["bag"]["state_dict"][keys])
    assert main(["fit", "--ckpt_path", "halves", "--model.grow.depth", "3"]) == 2
    assert "grow.depth is 3, and the run that goes on had 2, which has had its effect" in capsys.readouterr().err
    assert main(["fit", "--config", deeper, "--model.init_from", "grown", *growth]) == 2
    assert "has 2 already: leave it out" in capsys.readouterr().err
    assert main(["fit", "--config", deeper, "--model.grow", "null"]) == 2
    assert "model.grow is null" in capsys.readouterr().err

    # The grown run is a run as any other; fine-tuning lets its encoder grow too.
    assert TextPretraining.from_checkpoint("halves").encoder.config.heads == 4
    table = write_texts(tmp_path / "texts.parquet", 60)
    config["model"] = {"class_path": "FineTuning", "init_args": {"init_from": "halves"}}
    labelled = {"path": "parquet", "data_files": str(table), "label_column": "label", "maximum_length": 24}
    config["data"] = {"class_path": "LabelledDataModule", "init_args": labelled}
    tuning = str(write_config(tmp_path / "tune.yaml", config))
    fit(tuning, "tuned", "--model.grow.depth", "3", "--trainer.callbacks+", "text_corpus.StopAt3")
    assert main(["fit", "--ckpt_path", "tuned"]) == 0
    tuned = FineTuning.from_checkpoint("tuned")
    assert len(tuned.encoder.transformer.blocks) == 3 and tuned.lineage["grown_from_depth"] == "2"
    assert tuned.predict(["the senate pays new roads"])
