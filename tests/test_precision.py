"""How fp32 matrices are multiplied: TF32 only on GPUs and where less than fp32 was asked for, or as it is set."""

from collections.abc import Iterator

import pytest
import torch
from small_training import small_config, write_config
from toy_training import ToyData, ToyModule

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError
from lit_pretrain.precision import resolve_matmul_precision
from lit_pretrain.trainer import Trainer


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What is set here is set for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "on_cuda"),
    [("bf16-mixed", "high"), ("16-mixed", "high"), ("bf16-true", "high"), ("32-true", "highest"), (64, "highest")],
)
def test_tf32_is_for_gpus_that_were_not_asked_for_fp32(precision: str | int, on_cuda: str) -> None:
    assert resolve_matmul_precision("auto", precision, on_cuda=True) == on_cuda
    assert resolve_matmul_precision("auto", precision, on_cuda=False) is None
    assert resolve_matmul_precision("medium", precision, on_cuda=False) == "medium"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_trainer_sets_it_where_it_is_given_and_leaves_a_cpu_alone(precision: str) -> None:
    quiet = {"accelerator": "cpu", "precision": precision, "logger": False, "enable_progress_bar": False}
    for given, expected in (("auto", "highest"), ("high", "high"), ("auto", "high"), ("highest", "highest")):
        Trainer(**quiet, enable_checkpointing=False, float32_matmul_precision=given)
        assert torch.get_float32_matmul_precision() == expected


def test_fp16_is_refused_on_a_cpu_before_anything_is_read(tmp_path, capsys):
    """Lightning would train in bf16."""
    config = write_config(tmp_path / "fit.yaml", small_config(tmp_path / "nothing.jsonl", {"precision": "16-mixed"}))
    assert main(["fit", "--config", str(config)]) == 2
    assert "trainer.precision is 16-mixed, which a CPU does not have" in capsys.readouterr().err
    with pytest.raises(UserError, match="is 16-mixed"):
        Trainer(precision=16, accelerator="cpu", logger=False, fast_dev_run=True).fit(ToyModule(), ToyData())
