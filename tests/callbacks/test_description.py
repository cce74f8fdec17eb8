"""What MLflow's page shows of a run beside its figures: its data, and a description that people may add to."""

import pytest
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.callbacks import Description
from lit_pretrain.tracking.data_inputs import data_inputs
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.store import NOTE_BEGIN, NOTE_TAG, TAG_LIMIT, described


class NamedData(ToyData):
    """Says where it comes from and how much it is."""

    def describe(self):
        return {
            "source": "/home/me/corpora/speeches.csv",
            "data_fingerprint": "f" * 16,
            "training_sequences": 80,
            "validation_sequences": 12,
        }


def fit(runs, logger, **settings):
    trainer = make_trainer(runs, [Description()], logger=logger, **settings)
    checkpoint = settings.pop("checkpoint", None)
    trainer.fit(ToyModule(), NamedData(), ckpt_path=checkpoint)
    return trainer


def used(run):
    """What a run reads, by name, digest and context."""
    return sorted(
        (one.dataset.name, one.dataset.digest, tag.value, one.dataset.profile)
        for one in run.inputs.dataset_inputs
        for tag in one.tags
    )


def test_data_and_description_of_a_run_that_goes_on(tmp_path):
    logger = MLflowLogger("toy", "first", runs_directory=str(tmp_path))
    trainer = fit(tmp_path, logger, max_steps=20)
    client, run_id = logger.experiment, logger.run_id
    run = client.get_run(run_id)
    assert used(run) == [
        ("speeches.csv:training[80]", "f" * 16, "training", '{"num_rows": 80, "unit": "sequences"}'),
        ("speeches.csv:validation[12]", "f" * 16, "validation", '{"num_rows": 12, "unit": "sequences"}'),
    ]
    note = run.data.tags[NOTE_TAG]
    assert "**ToyModule (toy), 9 parameters**" in note
    assert "**Data:** speeches.csv (fingerprint ffffffff): 80 for training, 12 for validation" in note
    assert f"validation/loss {run.data.metrics['best/validation/loss']:.4g} at step 20 (best) (chance 0.25)" in note
    assert run.data.tags["chance"] == '{"loss": 0.25}'
    assert "python -m lit_pretrain export --ckpt first:best" in note and "report first" not in note

    # A person writes around it, and the run goes on.
    client.set_tag(run_id, NOTE_TAG, f"My remark.\n\n{note}\n\nAnd another.")
    again = MLflowLogger("toy", runs_directory=str(tmp_path))
    checkpoint = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
    again.resume_from(checkpoint)
    trainer = make_trainer(tmp_path, [Description()], logger=again, max_steps=40)
    trainer.fit(ToyModule(), NamedData(), ckpt_path=str(checkpoint))
    later = client.get_run(run_id)
    assert used(later) == used(run)
    note = later.data.tags[NOTE_TAG]
    assert note.startswith("My remark.\n\n<!--") and note.endswith("-->\n\nAnd another.")
    assert note.count(NOTE_BEGIN) == 1
    best = later.data.metrics["best/validation/loss"]
    assert f"validation/loss {best:.4g} at step" in note

    # What measures it has its own data and says what it measures.
    measuring = make_trainer(tmp_path, [Description()], logger=MLflowLogger("toy", runs_directory=str(tmp_path)))
    measuring.validate(ToyModule(), NamedData(), ckpt_path=str(checkpoint), verbose=False)
    measured = client.get_run(measuring.logger.run_id)
    assert [context for _, _, context, _ in used(measured)] == ["validation"]
    assert "**Validate of ToyModule" in measured.data.tags[NOTE_TAG]
    assert "**Weights:** first, step 40" in measured.data.tags[NOTE_TAG]


def test_a_note_keeps_what_a_person_wrote():
    first = described("", "one")
    assert described(first, "two") == first.replace("one", "two")
    assert described(f"before {first} after", "two").startswith("before\n\n<!--")
    # Without its end, or without room.
    assert described(f"before\n\n{NOTE_BEGIN}\n\ncut", "two") == f"before\n\n{first.replace('one', 'two')}"
    full = "x" * (TAG_LIMIT - 50)
    assert described(full, "two") == full
    assert len(described("x" * 4000, "y" * 2000)) <= TAG_LIMIT or described("x" * 4000, "y" * 2000) == "x" * 4000


@pytest.mark.parametrize(
    ("facts", "contexts", "names"),
    [
        ({"source": "stanfordnlp/imdb", "training_samples": 5}, ["training"], ["stanfordnlp/imdb:training[5]"]),
        ({"source": "a.csv", "validation_samples": 0}, ["training", "validation"], ["a.csv:training"]),
        (
            {"source": "a", "test_source": "/b/c.csv", "test_pictures": 3, "test_fingerprint": "t" * 16},
            ["test"],
            ["c.csv:test[3]"],
        ),
        (
            {"source": "a", "training_sequences": 3, "replay_source": "b", "replay_data_fingerprint": "r"},
            ["training"],
            ["a:training[3]", "b:training"],
        ),
        ({"source": "https://me:secret@host/x.csv?token=1"}, ["training"], ["x.csv:training"]),
    ],
)
def test_names_of_data(facts, contexts, names):
    inputs = data_inputs({"data_fingerprint": "f" * 16, **facts}, contexts)
    assert [one["name"] for one in inputs] == names
    assert all("secret" not in str(one) for one in inputs)
    if "test_fingerprint" in facts:
        assert inputs[0]["digest"] == "t" * 16
    assert data_inputs(facts, contexts) == [] or "replay_source" in facts
