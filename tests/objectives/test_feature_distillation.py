"""Feature distillation: the loss by hand, a teacher that is nobody's weights, what is refused, and a real training."""

import shutil

import mlflow
import numpy
import pytest
import torch
from small_training import training_of, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.data.text.text_encoding import TextSettings, batch_of
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.modules.teachers import TextTeacher
from lit_pretrain.objectives import FeatureDistillation


def make(width: int, objective: FeatureDistillation, vocabulary) -> tuple[TextEncoder, TextEncoder]:
    """A student, and the teacher that the objective finds."""
    torch.manual_seed(0)
    student, teacher = (
        TextEncoder(50, transformer=TransformerConfig(depth=1, width=size, heads=2), positions="rotary")
        for size in (16, width)
    )
    vocabulary.hash = "same"
    objective.load_teacher = lambda name: TextTeacher(teacher.eval().requires_grad_(False), vocabulary)
    objective.build(student, vocabulary)
    return student, teacher


def test_the_loss_by_hand_in_training_and_evaluation(texts, vocabulary):
    objective = FeatureDistillation("teacher")
    student, teacher = make(8, objective, vocabulary)
    assert objective.teacher_width == 8 and objective.settings()["init_args"]["teacher_width"] == 8
    features = teacher(texts["input_ids"], texts["attention_mask"]).numpy().astype(float)

    def by_hand(mean, variance):
        made = objective.make_pass(texts, student, torch.Generator())
        ids, mask = made.targets["ids"], made.targets["mask"]
        tokens = student.forward_features(ids, mask).detach()
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        prediction = objective.predictor(pooled).detach().numpy()
        target = (features - mean) / numpy.sqrt(variance + 1e-6)
        return ((prediction - numpy.concatenate([target, target])) ** 2).mean()

    found = objective(student, texts, torch.Generator()).loss
    assert found.item() == pytest.approx(by_hand(features.mean(0), features.var(0)), rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.embeddings.token.weight.grad.abs().sum() > 0
    # The first batch's statistics are the running ones, and evaluation leaves them alone.
    objective.eval()
    for _ in range(2):
        found = objective(student, texts, torch.Generator()).loss
        assert found.item() == pytest.approx(by_hand(features.mean(0), features.var(0)), rel=1e-5)
    # After as many batches as there are, each weighs the same.
    objective.train()
    other = {name: value.flip(0)[:3] if torch.is_tensor(value) else value for name, value in texts.items()}
    objective(student, other, torch.Generator())
    second = teacher(other["input_ids"], other["attention_mask"]).numpy().mean(0)
    numpy.testing.assert_allclose(objective.mean.numpy(), (features.mean(0) + second) / 2, rtol=1e-4, atol=1e-6)
    assert {name.split(".")[0] for name in objective.state_dict()} == {"predictor", "mean", "variance", "batches"}


def test_a_student_learns_from_a_run_and_outlives_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    encoder = {"transformer": {"width": 32, "depth": 0}, "positions": "rotary", "segments": 0}
    settings = {
        "encoder": {"class_path": "TextEncoder", "init_args": encoder},
        "objectives": [{"class_path": "BagOfWords"}],
        "optimizer": {"learning_rate": 1e-2},
    }
    data = {"path": str(write_corpus(tmp_path / "corpus.jsonl")), "vocabulary_size": 90, "sequence_length": 32}
    config = training_of(
        {"class_path": "TextPretraining", "init_args": settings},
        {"class_path": "DocumentDataModule", "init_args": data | {"layout": "segments", "batch_size": 16}},
    )
    name = "--trainer.logger.init_args.run_name"
    assert main(["fit", "--config", str(write_config(tmp_path / "teacher.yaml", config)), name, "teacher"]) == 0
    settings["objectives"] = [{"class_path": "FeatureDistillation", "init_args": {"teacher": "teacher"}}]
    encoder["transformer"] = {"width": 24, "depth": 1, "heads": 2}
    student = str(write_config(tmp_path / "student.yaml", config))
    capsys.readouterr()
    assert main(["fit", "--config", student, name, "refused", "--model.objectives.teacher", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
    assert main(["fit", "--config", student, name, "student"]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs(["1"], "attributes.run_name = 'student'")
    losses = [
        point.value for point in client.get_metric_history(run.info.run_id, "validation/feature_distillation/loss")
    ]
    # Whoever knows nothing has 1; what is left out of a half is most of what remains.
    assert losses[-1] < 0.75 and losses[-1] < losses[0]
    checkpoint = next((tmp_path / "runs").glob("**/student-*/checkpoints/last.ckpt"))
    assert not any("teacher" in key for key in torch.load(checkpoint, weights_only=True)["state_dict"])
    # What was learned is used, and gone on with, without the teacher.
    for teacher in (tmp_path / "runs").glob("**/teacher-*/checkpoints"):
        shutil.rmtree(teacher)
    capsys.readouterr()
    assert main(["predict", "--ckpt_path", "student"]) == 0
    assert main(["validate", "--ckpt_path", "student"]) == 2
    assert "teacher" in capsys.readouterr().err
    settings["objectives"] = [{"class_path": "BagOfWords"}]
    del settings["encoder"], config["data"]["init_args"]["vocabulary_size"]
    settings["init_from"] = "student"
    tuned = str(write_config(tmp_path / "tuned.yaml", config))
    assert main(["fit", "--config", tuned, name, "tuned", "--trainer.max_steps", "1"]) == 0


def test_a_teacher_with_another_tokenizer_reads_the_text_of_the_pieces():
    texts = ["The senate pays.", "Our nation considers a fair wage, and the army needs new roads.", "Peace"]
    first, second = (WordPieceTokenizer.train(iter(texts * 3), size, lowercase=True) for size in (70, 90))
    assert first.hash != second.hash
    torch.manual_seed(0)
    for positions in ("learned", "rotary"):
        transformer = TransformerConfig(depth=1, width=16, heads=2)
        encoder = TextEncoder(second.vocabulary_size, transformer=transformer, positions=positions, max_positions=64)
        teacher = TextTeacher(encoder.eval(), second)
        settings = TextSettings(("text",), 64)
        student, own = (batch_of({"text": texts}, tokenizer, settings) for tokenizer in (first, second))
        device = torch.device("cpu")
        expected = teacher.features(own, second, device)
        torch.testing.assert_close(teacher.features(student, first, device), expected)
