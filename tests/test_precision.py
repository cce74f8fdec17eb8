"""How fp32 matrices are multiplied: TF32 only on GPUs and where less than fp32 was asked for, or as it is set."""

from collections.abc import Iterator

import pytest
import torch

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
