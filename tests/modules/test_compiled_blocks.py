"""torch.compile of the blocks: how many graphs each kind of training makes, counted by a backend that runs them as is.

Beyond torch's limit blocks would run uncompiled with nothing but a line in the log.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from labelled_texts import make_encoder as make_text_encoder
from small_pairs import make_rows, pair_config, write_pairs
from small_pictures import make_pictures, write_pictures
from small_training import write_config
from text_corpus import make_data, write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.modules import FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.objectives import MaskedImageModeling, MaskedLanguageModeling, ReplacedTokenDetection, Rotation
from lit_pretrain.trainer import Trainer

SIGLIP = Path(__file__).parents[2] / "configs" / "contrastive" / "siglip.yaml"
SMALL = {"width": 16, "heads": 2}


class Counter:
    """A backend of torch.compile that runs graphs as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> object:
        """Take a new graph."""
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiled() -> Iterator[Counter]:
    """What is compiled during the test."""
    torch.compiler.reset()
    counter = Counter()
    torch.compiler.set_default_backend(counter)
    yield counter
    torch.compiler.set_default_backend(None)
    torch.compiler.reset()


def fit(module, data) -> None:
    """Two steps with a validation before and after them, its last batch being smaller."""
    settings = {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(**settings, enable_progress_bar=False, max_steps=2, val_check_interval=2, num_sanity_val_steps=1)
    trainer.fit(module, data)


def test_31_lengths_of_fine_tuning_are_two_graphs_and_evaluation_is_one_more(compiled) -> None:
    encoder = make_text_encoder(vocabulary_size=9, positions="rotary")
    module = FineTuning(encoder, dropout=0.1, compile_blocks=True, seed=0)
    module.facts = LabelFacts("single_label", ["takes", "gives"])
    module.configure_model()
    batches = [torch.ones(4, length, dtype=torch.long) for length in range(4, 128, 4)]

    for ids in batches:
        module.logits({"input_ids": ids, "attention_mask": ids.bool()}).sum().backward()
    assert len(batches) == 31 and compiled.graphs == 2
    module.eval()
    for ids in batches:
        with torch.no_grad():
            module.logits({"input_ids": ids, "attention_mask": ids.bool()})
    assert compiled.graphs == 3


def test_local_layers_are_few_graphs_and_compute_the_same(compiled) -> None:
    config = TransformerConfig(depth=3, norm_order="pre", first_attention_norm=False, attention_window=4, **SMALL)
    encoder = TextEncoder(9, transformer=config, positions="rotary", local_rotary_base=99.0)
    eager = copy.deepcopy(encoder)
    encoder.compile_blocks()
    for length in (4, 12, 16, 28):
        ids = torch.randint(9, (4, length))
        real = torch.arange(length) < torch.tensor([[length], [length], [length // 2], [1]])
        for one in (encoder, eager):
            one(ids, real).square().sum().backward()
    for one, other in zip(encoder.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)
    # The first block, which has no norm, and the local ones: with the mask of all for short texts, with their own, and
    # cut into blocks; each for one length and then for any.
    assert compiled.graphs <= 8


@pytest.mark.parametrize("recomputed", [False, True])
def test_12_blocks_of_as_many_drop_rates_are_two_graphs(compiled, recomputed) -> None:
    config = VisionTransformerConfig(depth=12, stochastic_depth=0.1, layer_scale=0.1, **SMALL)
    encoder = VisionEncoder(image_size=8, transformer=config)
    encoder.compile_blocks()
    encoder.set_grad_checkpointing(recomputed)
    images = torch.rand(4, 3, 8, 8)

    for _ in range(2):
        encoder.train()(images).sum().backward()
        with torch.no_grad():
            encoder.eval()(images)

    assert compiled.graphs == 2
    rates = [block.attention_branch[1].rate for block in encoder.transformer.blocks]
    torch.testing.assert_close(torch.stack(rates), torch.linspace(0.0, 0.1, 12))


def test_a_text_pretraining_compiles_encoder_and_generator(compiled, tmp_path) -> None:
    encoder = TextEncoder(transformer=TransformerConfig(depth=2, dropout=0.1, **SMALL), max_positions=32)
    objectives = [MaskedLanguageModeling(), ReplacedTokenDetection(generator_width_share=0.5)]
    module = TextPretraining(encoder, objectives, compile_blocks=True, seed=0)
    # Every batch is padded: one that is not has no mask, for which there would be two more.
    fit(module, make_data(write_corpus(tmp_path / "corpus.jsonl"), tmp_path, short_share=0.99))
    # Two widths in evaluation, in training, and in evaluation with any number of texts, where the generator's first
    # block, whose input is a view of what a linear layer gives, has one of its own.
    assert compiled.graphs == 7


def test_a_vision_pretraining_compiles_encoder_and_decoder(compiled, tmp_path) -> None:
    encoder = VisionEncoder(image_size=16, transformer=VisionTransformerConfig(depth=2, stochastic_depth=0.1, **SMALL))
    objectives = [MaskedImageModeling(decoder_depth=2, decoder_width=16), Rotation(views="random")]
    module = VisionPretraining(encoder, objectives, compile_blocks=True, seed=0)
    fit(module, make_pictures(write_pictures(tmp_path / "pictures.parquet", count=60), tmp_path, batch_size=5))
    # Patches that are kept, all of them in the decoder, all of them turned: in evaluation, in training, and in the
    # last, smaller batch of an evaluation.
    assert compiled.graphs == 9


def test_siglip_as_it_is_shipped_stays_within_the_limit(compiled, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    rows = make_rows(40)
    rows["title"] = [f"{title} {'9' * (place % 4)}" for place, title in enumerate(rows["title"])]
    config = pair_config(write_pairs(tmp_path / "pairs.parquet", rows))
    shipped = yaml.safe_load(SIGLIP.read_text())["model"]["init_args"]
    for tower, depth in (("text", 4), ("vision", 12)):
        arguments = shipped[f"{tower}_encoder"]["init_args"]
        arguments |= {"size": None, "transformer": arguments["transformer"] | SMALL | {"depth": depth}}
    shipped["vision_encoder"]["init_args"] |= {"image_size": 16, "patch_size": 4}
    config["model"]["init_args"] = shipped | {"chunk_size": 4, "gradient_checkpointing": True}
    config["trainer"] |= {"max_steps": 3, "val_check_interval": 3, "logger": False}

    assert main(["fit", "--config", str(write_config(tmp_path / "config.yaml", config))]) == 0
    # Of pictures: before the loss, after it, in evaluation; texts have two lengths beside, and any number of captions.
    assert compiled.graphs == 7
