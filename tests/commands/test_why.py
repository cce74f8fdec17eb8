"""`why`: the batch that it makes again is the one that the training saw, with what was drawn for it."""

import argparse
import json
import os
from types import MethodType

import pytest
import torch
from child_processes import both_ranks
from PIL import Image
from small_pairs import pair_config, write_pairs
from small_pictures import picture_config, write_pictures
from small_training import small_config, write_config

from lit_pretrain.__main__ import main
from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.commands import why

# The run goes to 10 steps and is gone on with to 20; batches of these steps are kept: the first one, a later one, the
# one after the checkpoint, the last one, which is of a later epoch.
STEPS = (1, 8, 11, 20)


def encoders_of(module):
    """By name."""
    names = ("encoder", "text_encoder", "vision_encoder")
    return {name: one for name in names if (one := getattr(module, name, None)) is not None}


class Recorded(CommandLine):
    """Keeps what the encoders of a training are given, and its losses, by step, from 1."""

    inputs: dict = {}
    losses: dict = {}
    batches: dict = {}

    def before_fit(self):
        module, kind = self.model, type(self)
        step = module.training_step

        def training_step(self, batch, index):
            number = module.trainer.global_step + 1
            now = []
            for name, encoder in encoders_of(module).items():
                forward = type(encoder).forward_features

                def keep(*arguments, _name=name, _encoder=encoder, _forward=forward, **settings):
                    given = [one.clone() for one in (*arguments, *settings.values()) if isinstance(one, torch.Tensor)]
                    now.append((_name, given))
                    return _forward(_encoder, *arguments, **settings)

                object.__setattr__(encoder, "forward_features", keep)
            loss = step(batch, index)
            for encoder in encoders_of(module).values():
                object.__delattr__(encoder, "forward_features")
            if number in STEPS:
                kind.inputs.setdefault(number, []).extend(now)
                kind.losses.setdefault(number, []).append(float(loss))
                kind.batches.setdefault(number, []).append(batch)
            return loss

        object.__setattr__(module, "training_step", MethodType(training_step, module))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("why")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.setenv("COLUMNS", "200")
        patch.chdir(directory)
        yield directory


def config_of(kind, directory):
    trainer = {"val_check_interval": 10, "limit_val_batches": 1, "num_sanity_val_steps": 0, "max_steps": 10}
    if kind == "text":
        from text_corpus import write_corpus

        # Validations are counted in batches.
        trainer |= {"accumulate_grad_batches": 2, "val_check_interval": 20}
        config = small_config(write_corpus(directory / "corpus.jsonl", 20), trainer)
        config["model"]["init_args"]["objectives"].append({"class_path": "ReplacedTokenDetection"})
    elif kind == "vision":
        names = ("Rotation", "Colorization", "MaskedImageModeling", "LeJEPA")
        objectives = [{"class_path": name} for name in names]
        config = picture_config(write_pictures(directory / "pictures.parquet"), objectives, trainer)
    else:
        config = pair_config(write_pairs(directory / "pairs.parquet"), trainer, {"chunk_size": 3})
    config["trainer"]["callbacks"] = [{"class_path": "BestCheckpoint", "init_args": {"save_top_k": -1}}]
    return config


@pytest.fixture(scope="module", params=["text", "vision", "contrastive"])
def trained(request, place):
    """A run of 10 steps that was gone on with to 20, with what it saw."""
    kind = request.param
    path = str(write_config(place / f"{kind}.yaml", config_of(kind, place)))
    recorded = type(kind, (Recorded,), {"inputs": {}, "losses": {}, "batches": {}})
    first = command_line(["fit", "--config", path], recorded)
    last = first.trainer.checkpoint_callback.last_model_path
    command_line(["fit", "--config", path, "--ckpt_path", last, "--trainer.max_steps", "20"], recorded)
    return kind, first.trainer.logger.run_name, recorded


def train_together(directory):
    """What one of two processes sees in trainings of texts and of pictures, by kind."""
    # The server that it is forked from has the environment of whichever test has started it.
    os.environ["LIT_PRETRAIN_RUNS"] = str(directory.parent / "runs")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.chdir(directory)
    seen = {}
    for kind in ("text", "vision"):
        config = config_of(kind, directory)
        config["trainer"] |= {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_steps": 8}
        path = str(write_config(directory / f"{kind}-{os.environ['LOCAL_RANK']}.yaml", config))
        recorded = type(kind, (Recorded,), {"inputs": {}, "losses": {}, "batches": {}})
        line = command_line(["fit", "--config", path], recorded)
        run = line.trainer.logger.run_name if line.trainer.is_global_zero else None
        seen[kind] = {"run": run, "inputs": recorded.inputs, "batches": recorded.batches}
    return seen


def test_batches_of_two_processes_are_those_that_each_has_seen(place):
    (place / "two").mkdir()
    ranks = both_ranks(train_together, place / "two")
    for kind in ("text", "vision"):
        run = ranks[0][kind]["run"]
        drawn = []
        for rank, recorded in enumerate(ranks):
            line = again(run, 8, rank=rank, no_losses=True)
            given = iter(recorded[kind]["inputs"][8])
            for seen, batch in zip(line.seen, recorded[kind]["batches"][8], strict=True):
                assert seen.trained["sample_id"].tolist() == batch["sample_id"].tolist()
                shown = seen.shown[0]
                # The objectives that share a pass, and those whose passes do not hang on the weights.
                made = shown.passes["masked_language_modeling" if kind == "text" else "rotation"]
                rebuilt = [value for value in made.inputs.values() if isinstance(value, torch.Tensor)]
                _, values = next(given)
                assert all(torch.equal(*both) for both in zip(rebuilt, values, strict=True))
                drawn.append(rebuilt[0])
                if kind == "text":
                    next(given)
        assert not torch.equal(drawn[0], drawn[-1])


def again(run, step, **settings):
    """The step, made again."""
    chosen = {"rank": 0, "samples": 3, "output": None, "no_losses": False, "json": None, "runs": None, "training": []}
    return why.step_again(argparse.Namespace(run_name=run, step=step, **chosen | settings))


def test_the_batch_is_the_one_that_was_seen(trained):
    kind, run, recorded = trained
    for step in STEPS:
        line = again(run, step, no_losses=step != 11)
        assert len(line.seen) == len(recorded.batches[step]) == (2 if kind == "text" else 1)
        given = iter(recorded.inputs[step])
        for seen, batch, loss in zip(line.seen, recorded.batches[step], recorded.losses[step], strict=True):
            for name, value in batch.items():
                assert isinstance(value, bool) or torch.equal(
                    torch.as_tensor(seen.trained[name]), torch.as_tensor(value)
                )
            if step in (1, 11):
                # The weights with which the step was made.
                assert seen.loss == pytest.approx(loss, rel=1e-5)
            if kind == "contrastive":
                continue
            passes = {}
            for objective in seen.shown[0].objectives:
                made = seen.shown[0].passes[objective.name]
                if made is not None:
                    passes.setdefault(objective.pass_name or objective.name, made)
            for name, made in passes.items():
                _, values = next(given)
                if name == "replaced_token_detection" and step not in (1, 11):
                    # What its generator fills in is a matter of the weights.
                    continue
                rebuilt = [value for value in made.inputs.values() if isinstance(value, torch.Tensor)]
                assert all(torch.equal(*both) for both in zip(rebuilt, values, strict=True))
        if kind == "contrastive":
            (seen,) = line.seen
            texts = torch.cat([values[0] for name, values in recorded.inputs[step] if name == "text_encoder"])
            pictures = torch.cat([values[0] for name, values in recorded.inputs[step] if name == "vision_encoder"])
            assert torch.equal(seen.captions["input_ids"], texts)
            assert torch.equal(line.model.vision_encoder.normalize(seen.views), pictures)
        assert (line.before.step if line.before else 0) == {1: 0, 8: 0, 11: 10, 20: 10}[step]
        assert line.place.epoch > 0 or step < 20
        if step == 11:
            check_figures(kind, line)


def check_figures(kind, line):
    """Every sample has a gradient, and a loss where there is one; both are those of the samples alone."""
    (found,) = line.found[0]
    assert len(found.gradients) == len(found.ids) == 8 and all(norm > 0 for norm in found.gradients)
    with_losses, without = {
        "text": ({"masked_language_modeling", "next_sentence_prediction"}, ["replaced_token_detection"]),
        "vision": ({"rotation", "colorization", "masked_image_modeling"}, ["lejepa"]),
        "contrastive": ({"clip"}, []),
    }[kind]
    assert set(found.losses) == with_losses and found.without == without
    if kind != "vision":
        return
    # Of a mean over samples, what comes through one is its own loss's gradient.
    shown, sample = line.seen[0].shown[0], 3
    shown.objectives, encoder = shown.objectives[:1], shown.encoder
    from lit_pretrain.commands.inspection.samples import norm_of, of_objectives

    line.model.eval()
    only = of_objectives(shown, found.ids)
    (rotation,) = shown.objectives
    made = shown.passes["rotation"]
    rows = rotation.rows_of_sample(sample, 8, len(made.inputs["images"]))
    features = encoder.forward_features(made.inputs["images"][rows])
    loss = rotation.compute(features, rotation.targets_of(made.targets, sample, 8), {}, encoder).loss
    gradients = torch.autograd.grad(loss / 8, [*encoder.parameters()], allow_unused=True)
    assert only.gradients[sample] == pytest.approx(norm_of(gradients), rel=1e-3)
    assert only.losses["rotation"][sample] == pytest.approx(float(loss), rel=1e-3)


def test_it_is_shown(trained, tmp_path, capsys):
    kind, run, _ = trained
    output, file = tmp_path / "step.png", tmp_path / "step.json"
    options = ["--samples", "2", "--output", str(output), "--json", str(file)]
    assert main(["why", run, "--step", "11", *options]) == 0
    printed = capsys.readouterr().out
    assert f"Step 11 of {run}: epoch" in printed and "the weights with which the step was made" in printed
    assert "gradient norm" in printed
    if kind == "text":
        assert " -> [MASK]]" in printed and " -> itself]" in printed and "next_sentence_label" in printed
    else:
        assert f"The pictures are in {output}" in printed and Image.open(output).size[1] > 2 * 96
    content = json.loads(file.read_text())
    assert content["weights_of_step"] == 10 and len(content["batches"][0]["kinds"][0]["gradient_norms"]) == 8
    # A step of which no checkpoint is kept before: said so.
    assert main(["why", run, "--step", "5", "--no-losses", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "No checkpoint before this step is kept (the first one is of step 10)" in printed


@pytest.mark.parametrize("trained", ["vision"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "0"], "--step is 0"),
        (["--step", "21"], "was to make fewer"),
        (["--step", "3", "--rank", "1"], "the run had 1 processes"),
        (["--step", "3", "--data.batch_size", "4"], "data.batch_size is 4 now, and was 8"),
        (["--step", "3", "--model.seed", "9"], "add --model.seed 3"),
    ],
)
def test_what_cannot_be_made_again_is_one_sentence(trained, arguments, words, capsys):
    _, run, _ = trained
    assert main(["why", run, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(place, capsys):
    assert main(["why", "nothing", "--step", "1"]) == 2
    assert "nothing" in capsys.readouterr().err
