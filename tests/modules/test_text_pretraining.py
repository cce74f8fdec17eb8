"""Text pretraining through the real Trainer: metrics, checkpoints, what does not fit, and a loss that breaks."""

import json
import math
from pathlib import Path

import lightning
import numpy
import pytest
import torch
from child_processes import in_own_process
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from text_corpus import make_data, make_encoder, write_corpus

from lit_pretrain.data.text.co_occurrence import piece_vectors
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.base import NonFiniteLossError
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig
from lit_pretrain.modules.starting_points import load_starting_point, without_weights
from lit_pretrain.modules.steps import total_steps
from lit_pretrain.objectives import (
    CausalLanguageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
)


def make_trainer(directory: Path, **settings: object) -> lightning.Trainer:
    """A quiet trainer on the CPU."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(directory, "", ""),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "max_steps": 12,
        "log_every_n_steps": 4,
        "default_root_dir": directory,
    }
    return lightning.Trainer(**defaults | settings)


def make_module(objectives: list | None = None, **settings: object) -> TextPretraining:
    """BERT's two objectives on a very small encoder."""
    torch.manual_seed(0)
    return TextPretraining(
        make_encoder(), objectives or [MaskedLanguageModeling(), NextSentencePrediction()], **{"seed": 5} | settings
    )


def logged(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What a CSV logger wrote: (step, value) by metric."""
    lines = (directory / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines[1:]:
        row = dict(zip(names, line.split(","), strict=True))
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                found.setdefault(name, []).append((int(row["step"]), float(value)))
    return found


def test_metrics_of_every_objective_are_reported_at_the_right_steps(data, tmp_path) -> None:
    module = make_module(
        [MaskedLanguageModeling(), NextSentencePrediction(weight=0.5), ReplacedTokenDetection(weight=0.1)]
    )
    make_trainer(tmp_path, val_check_interval=6).fit(module, data)
    metrics = logged(tmp_path)
    assert [step for step, _ in metrics["train/loss"]] == [3, 7, 11], "steps count from 0"
    assert [step for step, _ in metrics["learning_rate"]] == [3, 7, 11]
    names = {
        "masked_language_modeling": {"loss", "accuracy", "perplexity"},
        "next_sentence_prediction": {"loss", "accuracy"},
        "replaced_token_detection": {
            "accuracy",
            "discriminator_loss",
            "generator_accuracy",
            "generator_loss",
            "generator_perplexity",
            "originals_kept",
            "replaced_found",
            "replaced_share",
        },
    }
    for stage in ("train", "validation"):
        wanted = {f"{stage}/{objective}/{name}" for objective, parts in names.items() for name in parts}
        assert wanted | {f"{stage}/loss"} == {name for name in metrics if name.startswith(stage)}
    last = {name: values[-1][1] for name, values in metrics.items()}
    one = "validation/masked_language_modeling"
    assert last[f"{one}/perplexity"] == pytest.approx(math.exp(last[f"{one}/loss"]), rel=1e-4)
    detection = (
        last["validation/replaced_token_detection/generator_loss"]
        + 50 * (last["validation/replaced_token_detection/discriminator_loss"])
    )
    parts = last[f"{one}/loss"] + 0.5 * last["validation/next_sentence_prediction/loss"] + 0.1 * detection
    # However many positions and pairs each batch had.
    assert last["validation/loss"] == pytest.approx(parts, rel=1e-5)


class SavesAndStops(Callback):
    """Saves as some step ends, and ends the training by that as a signal does."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step and not trainer.fit_loop.epoch_loop._should_accumulate():
            trainer.save_checkpoint(self.path, weights_only=False)
            raise SystemExit


# In the middle between two reports, and at one.
@pytest.mark.parametrize("stopped", [6, 8])
def test_no_steps_are_left_out_of_the_reports_of_a_resumed_training(corpus, tmp_path, stopped) -> None:
    settings = {"max_steps": 10, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer = make_trainer(tmp_path / "straight", **settings)
    trainer.fit(make_module(), make_data(corpus, tmp_path))
    whole = logged(tmp_path / "straight")
    # The last two steps have a report of their own.
    assert [step for step, _ in whole["train/loss"]] == [3, 7, 9]
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(whole["train/loss"][-1][1])
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(SystemExit):
        stops = make_trainer(tmp_path / "first", callbacks=[SavesAndStops(path, stopped)], **settings)
        stops.fit(make_module(), make_data(corpus, tmp_path))
    resumed = make_trainer(tmp_path / "second", **settings)
    resumed.fit(make_module(), make_data(corpus, tmp_path), ckpt_path=path, weights_only=True)
    halves = [logged(tmp_path / part) for part in ("first", "second")]
    for name, rows in whole.items():
        steps, values = zip(*(halves[0].get(name, []) + halves[1].get(name, [])), strict=True)
        assert (list(steps), list(values)) == ([step for step, _ in rows], pytest.approx([one for _, one in rows]))


def test_it_learns_the_order_in_the_sentences(corpus, tmp_path) -> None:
    module = make_module(
        [CausalLanguageModeling()],
        optimizer=AdamWConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warm_up=20),
    )
    trainer = make_trainer(tmp_path, max_steps=200, val_check_interval=200, check_val_every_n_epoch=None)
    trainer.fit(module, make_data(corpus, tmp_path, layout="segments"))
    losses = [value for _, value in logged(tmp_path)["train/loss"]]
    assert losses[0] > 3.5 and losses[-1] < 2.0
    assert trainer.callback_metrics["validation/causal_language_modeling/accuracy"] > 0.5


def test_validation_masks_are_the_same_in_every_run_and_at_every_step(corpus, tmp_path) -> None:
    values = []
    for seed in (1, 2):
        module = make_module(seed=seed)
        trainer = make_trainer(tmp_path)
        data = make_data(corpus, tmp_path)
        torch.manual_seed(7)  # the heads' weights
        values += [trainer.validate(module, data, verbose=False)[0]["validation/loss"] for _ in range(2)]
    assert values[0] == values[1] and values[2] == values[3]
    assert values[0] == values[2], "the run's own seed plays no part"


def test_the_schedule_spans_the_training_without_touching_the_loaders(data, tmp_path) -> None:
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=2, accumulate_grad_batches=2)
    module = make_module()
    trainer.fit(module, data)
    batches = data.train_batches_per_epoch
    assert trainer.global_step == 2 * math.ceil(batches / 2) == total_steps(trainer)
    assert module._used_rates["learning_rate"] < 0.2 * AdamWConfig().learning_rate


def test_a_training_without_end_is_refused(data, tmp_path) -> None:
    with pytest.raises(UserError, match="set trainer.max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1, max_time={"seconds": 1}).fit(make_module(), data)


def test_a_checkpoint_loads_without_data_config_or_pickle(data, tmp_path) -> None:
    module, trainer = make_module(), make_trainer(tmp_path)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    record = checkpoint["lit_pretrain"]
    assert record["tokenizer_hash"] == data.tokenizer.hash and record["data_fingerprint"] == data.fingerprint
    back = TextPretraining.from_checkpoint(tmp_path / "one.ckpt")
    batch = next(iter(data.val_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    torch.testing.assert_close(back.eval().encoder(**inputs), module.eval().encoder(**inputs))
    assert back.tokenizer.encode("the old treaty") == data.tokenizer.encode("the old treaty")
    assert [one.name for one in back.objectives] == [one.name for one in module.objectives]


def test_a_checkpoint_of_another_kind_says_what_differs(data, corpus, tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    def resume(module: TextPretraining, other=data) -> None:
        make_trainer(tmp_path, max_steps=20).fit(module, other, ckpt_path=tmp_path / "one.ckpt")

    wide = TextPretraining(make_encoder(max_positions=40), [MaskedLanguageModeling(), NextSentencePrediction()])
    with pytest.raises(UserError, match=r"encoder.max_positions \(32 there, 40 here\)"):
        resume(wide)
    with pytest.raises(UserError, match="MaskedLanguageModeling, NextSentencePrediction there"):
        resume(make_module([CausalLanguageModeling()]))
    other = make_data(write_corpus(tmp_path / "other.jsonl", seed=9), tmp_path, vocabulary_size=85)
    with pytest.raises(UserError, match=f"trained with tokenizer {data.tokenizer.hash}"):
        resume(make_module(), other)


def test_a_loss_that_breaks_stops_with_its_batch_written_down(data, tmp_path) -> None:
    module = make_module(optimizer=AdamWConfig(learning_rate=1e30), gradient_clip_norm=None)
    with pytest.raises(NonFiniteLossError, match=r"at step \d+; the sample ids of its batch are in") as caught:
        make_trainer(tmp_path).fit(module, data)
    (path,) = tmp_path.glob("non-finite-loss-step-*.json")
    record = json.loads(path.read_text())
    assert f"at step {record['step']};" in str(caught.value)
    expected = data.batch_at(epoch=0, batch_index=record["step"])["sample_id"].tolist()
    assert record["sample_ids"] == expected and len(expected) == 8


def test_data_and_objectives_that_do_not_fit_are_refused_before_training(corpus, data, tmp_path) -> None:
    with pytest.raises(UserError, match="set data.layout to sentence_pairs"):
        make_trainer(tmp_path).fit(make_module(), make_data(corpus, tmp_path, layout="segments"))
    short = TextPretraining(make_encoder(max_positions=16), [MaskedLanguageModeling()])
    with pytest.raises(UserError, match="32 tokens is longer than the position table of 16"):
        make_trainer(tmp_path).fit(short, data)
    with pytest.raises(UserError, match="objectives is empty"):
        TextPretraining(make_encoder(), [])
    with pytest.raises(UserError, match="masked_language_modeling twice"):
        TextPretraining(make_encoder(), [MaskedLanguageModeling(), MaskedLanguageModeling()])


def train_compiled(corpus: Path, directory: Path) -> None:
    """Train with compiled blocks as without."""
    losses, data = {}, make_data(corpus, directory)
    for compiled in (False, True):
        module = make_module(compile_blocks=compiled)
        make_trainer(directory, max_steps=3, log_every_n_steps=1, limit_val_batches=0).fit(module, data)
        losses[compiled] = [value for _, value in logged(directory)["train/loss"]]
        assert "encoder.transformer.blocks.0.attention.projection.weight" in module.state_dict()
    assert len(losses[True]) == 3 and losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_compiled_blocks_train_and_keep_their_names(corpus, tmp_path) -> None:
    # The compiler is sixty megabytes, which nothing else in this process needs.
    in_own_process(train_compiled, corpus, tmp_path)


def test_examples_cost_and_embeddings(data, tmp_path) -> None:
    module, trainer = make_module(), make_trainer(tmp_path, val_check_interval=6)
    assert module.examples() == {}
    trainer.fit(module, data)
    rows = module.examples(count=4)
    assert set(rows) == {"masked_language_modeling", "next_sentence_prediction"}
    assert len(rows["masked_language_modeling"]) == 4 and "[MASK]" in rows["masked_language_modeling"][0]["masked"]
    batch = data.batch_at(epoch=0, batch_index=0)
    cost = module.step_cost(batch)
    vocabulary, tokens = data.tokenizer.vocabulary_size, 8 * 32
    encoder = tokens * 2 * (4 * 32**2 + 2 * 32 * 128 + 2 * 32 * 32)
    heads = 8 * 5 * 2 * 32 * (32 + vocabulary) + 8 * 2 * 32 * (32 + 2)  # round(0.15 x 32) = 5 positions; pooler and 2
    assert cost == {"samples": 8, "tokens": tokens, "flops": pytest.approx(3.0 * (encoder + heads))}
    predictions = trainer.predict(module, data)
    embeddings = torch.cat([one["embedding"] for one in predictions])
    assert embeddings.shape == (60, 32) and embeddings.dtype == torch.float32 and embeddings.isfinite().all()


def test_the_frequent_ngrams_of_the_corpus_go_with_the_weights(data, tmp_path) -> None:
    encoder = make_encoder(ngrams=2, ngram_rows=50)
    module, trainer = TextPretraining(encoder, [MaskedLanguageModeling()], seed=0), make_trainer(tmp_path, max_steps=3)
    trainer.fit(module, data)
    ngrams = encoder.embeddings.ngrams
    assert ngrams.keys.tolist() == data.frequent_ngrams(2, 50).tolist()
    assert ngrams.table[0].abs().max() == 0.0 < ngrams.table[1:].abs().max()
    trainer.save_checkpoint(tmp_path / "pairs.ckpt")

    again = TextPretraining.from_checkpoint(tmp_path / "pairs.ckpt")
    torch.testing.assert_close(again.encoder.embeddings.state_dict(), encoder.embeddings.state_dict(), rtol=0, atol=0)
    # From scratch the same n-grams are known, and nothing about them.
    start = load_starting_point(str(tmp_path / "pairs.ckpt"))
    fresh = without_weights(start).encoder.embeddings.ngrams
    assert torch.equal(fresh.keys, start.encoder.embeddings.ngrams.keys) and torch.equal(fresh.keys, ngrams.keys)
    assert fresh.table.abs().max() == 0.0


def test_initial_embeddings_of_the_corpus(tmp_path):
    data = make_data(write_corpus(tmp_path / "corpus.jsonl"), tmp_path)
    module = make_module(initial_embeddings="co_occurrence")
    make_trainer(tmp_path / "run", max_steps=1, limit_val_batches=0).fit(module, data)
    vectors = data.piece_vectors(module.encoder.width)
    # One warm-up step of AdamW moves nothing by more than its rate.
    assert torch.allclose(module.encoder.embeddings.token.weight, vectors, atol=2e-3)
    # The documents of the validation are not counted.
    training = piece_vectors(data.cache, data.own_dataset.documents, len(vectors), module.encoder.width)
    assert len(data.own_dataset.documents) < data.cache.documents
    assert numpy.array_equal(vectors.numpy(), training)


def test_initial_embeddings_are_for_new_weights(tmp_path):
    module = make_module()
    make_trainer(tmp_path / "run", max_steps=1, limit_val_batches=0, enable_checkpointing=True).fit(
        module, make_data(write_corpus(tmp_path / "corpus.jsonl"), tmp_path)
    )
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    settings = {"init_from": str(checkpoint), "initial_embeddings": "co_occurrence"}
    with pytest.raises(UserError, match="initial_embeddings"):
        TextPretraining(None, list(module.objectives), **settings)
    TextPretraining(None, list(make_module().objectives), pretrained=False, **settings)
