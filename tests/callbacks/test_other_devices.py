"""A training goes on with more or fewer processes: every sample of the epoch once, in steps of as many."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch.callbacks import Callback
from text_corpus import fit, make_data, make_encoder, write_corpus

from lit_pretrain.callbacks.resuming import compare
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.objectives import MaskedLanguageModeling

# Samples of a device's batch, and batches of a step: each makes steps of 8.
ALONE = {"whole": (8, 1), "in halves": (4, 2)}
TOGETHER = (4, 1)


class Watch(Callback):
    """Notes the samples of each step, and saves after the second one."""

    def __init__(self, path):
        self.path, self.steps = path, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # The last batch of a step ends when the step is counted.
        accumulates = trainer.fit_loop.epoch_loop._should_accumulate()
        self.steps.setdefault(trainer.global_step + accumulates, []).extend(batch["sample_id"].tolist())
        if trainer.global_step == 2 and not accumulates and not self.path.exists():
            trainer.save_checkpoint(self.path)


def train(directory: Path, name: str, form: tuple[int, int], devices: int, checkpoint: Path | None = None):
    """One epoch; returns the samples of each step of this process."""
    torch.manual_seed(0)
    batch_size, accumulation = form
    data = make_data(directory / "texts.json", directory, layout="segments", batch_size=batch_size)
    watch = Watch(directory / f"{name}.ckpt")
    trainer = fit(
        TextPretraining(make_encoder(), [MaskedLanguageModeling()], seed=0),
        data,
        checkpoint,
        max_steps=-1,
        max_epochs=1,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        accumulate_grad_batches=accumulation,
        callbacks=[watch],
        default_root_dir=directory,
    )
    assert trainer.global_step == max(watch.steps)
    return watch.steps


def both(directory: Path) -> dict[str, dict[int, list[int]]]:
    """What each of two processes sees: of all, and of what follows trainings of one process."""
    seen = {"straight": train(directory, "together", TOGETHER, 2)}
    for name in ALONE:
        seen[name] = train(directory, f"again {name}", TOGETHER, 2, directory / f"alone {name}.ckpt")
    return seen


def test_every_sample_of_the_epoch_comes_once_in_the_steps_of_before(tmp_path):
    write_corpus(tmp_path / "texts.json", documents=20)
    # The steps of all are those of one process, which is never stopped.
    straight = {name: train(tmp_path, f"alone {name}", form, 1) for name, form in ALONE.items()}
    expected = {step: sorted(samples) for step, samples in straight["whole"].items()}
    samples = [sample for step in expected.values() for sample in step]
    assert len(expected) >= 5 and len(samples) == len(set(samples)) == 8 * len(expected)
    assert {step: sorted(samples) for step, samples in straight["in halves"].items() if step in expected} == expected

    ranks = both_ranks(both, tmp_path)
    for name, first in (("straight", 1), ("whole", 3), ("in halves", 3)):
        found = {step: sorted(samples + ranks[1][name][step]) for step, samples in ranks[0][name].items()}
        assert found == {step: samples for step, samples in expected.items() if step >= first}, name
    # What the data was is kept, to be compared.
    resuming = torch.load(tmp_path / "together.ckpt", weights_only=True)["callbacks"]["Resuming"]["facts"]
    assert resuming["devices"] == 2 and len(resuming["orders"]["data"]["fingerprint"]) >= 8
    # Two processes on one, by larger batches or by more of them.
    for name, form in ALONE.items():
        found = train(tmp_path, f"back {name}", form, 1, tmp_path / "together.ckpt")
        assert min(found) == 3 and all(sorted(found[step]) == expected[step] for step in found if step in expected)
        assert set(expected) - {1, 2} <= set(found)


def facts(devices, batch_size, accumulation, **order):
    order = {"batch_size": batch_size, "seed": 3, "samples": 100, "cut_anywhere": True} | order
    return {"devices": devices, "seed": 3, "accumulation": accumulation, "orders": {"data": order}}


def test_what_makes_steps_of_as_many_samples_is_told():
    with pytest.warns(UserWarning, match=r"devices \(2 then, 1 now\), and masks, crops and dropout are drawn by devic"):
        assert compare(facts(2, 8, 1), facts(1, 8, 2), 5) == 2
    with pytest.warns(UserWarning, match="bit for bit"):
        assert compare(facts(3, 4, 2), facts(2, 4, 3), 4) == Fraction(3, 2)
    for now, done, way in (
        (facts(1, 8, 1), 5, r"by data.batch_size 16 or data.batch_size 8 and trainer.accumulate_grad_batches 2,"),
        (facts(1, 8, 3), 5, r"by data.batch_size 16 and trainer.accumulate_grad_batches 1 or data.batch_size 8 a"),
        # In the order of batches of like length the place is that of no other number.
        (facts(1, 8, 2, cut_anywhere=False), 5, r"by data.batch_size 16 and trainer.accumulate_grad_batches 1, or"),
        (facts(3, 5, 1), 5, r"by a number of devices that divides 16, or go on from the end of an epoch"),
    ):
        with pytest.raises(UserError, match=way):
            compare(facts(2, 8, 1), now, done)
    # Between two epochs it is said alone, as is data that is no longer what it was.
    with pytest.warns(UserWarning, match=r"in the samples of a step \(16 then, 8 now\)"):
        compare(facts(2, 8, 1), facts(1, 8, 1), 0)
    with pytest.warns(UserWarning, match="differs in what data is read from, which has changed:"):
        compare(facts(2, 8, 1, fingerprint="a"), facts(2, 8, 1, fingerprint="b"), 0)
