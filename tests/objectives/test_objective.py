"""What holds for every objective: it runs on a GPU, mixes with the others, and its global mean is exact."""

import pytest
import torch
from child_processes import children
from fake_device import NoWaiting, to_fake_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.objectives import (
    BagOfNgrams,
    BagOfWords,
    CausalLanguageModeling,
    ContrastiveSpans,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
    compute_objectives,
)
from lit_pretrain.objectives.objective import global_mean

OBJECTIVES = [
    MaskedLanguageModeling,
    lambda: MaskedLanguageModeling(whole_word=True),
    NextSentencePrediction,
    ReplacedTokenDetection,
    CausalLanguageModeling,
    ContrastiveSpans,
    BagOfWords,
    BagOfNgrams,
]


@pytest.mark.parametrize("make", OBJECTIVES)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_nothing_stays_on_the_cpu_when_the_model_is_on_a_gpu(make, positions, vocabulary) -> None:
    config = TransformerConfig(depth=1, width=16, heads=2)
    encoder = TextEncoder(50, transformer=config, positions=positions, ngrams=2, ngram_rows=8)
    objective = make()
    objective.build(encoder, vocabulary)
    mode = FakeTensorMode()
    to_fake_cuda(encoder, mode)
    to_fake_cuda(objective, mode)
    with mode, NoWaiting(), torch.no_grad():
        ids = torch.ones(2, 12, dtype=torch.long, device="cuda")
        batch = {
            "input_ids": ids,
            "attention_mask": ids.bool(),
            "token_type_ids": ids,
            "next_sentence_label": ids[:, 0],
        }
        output = objective(encoder, batch, None)
        assert output.loss.device.type == "cuda"
        assert {value.device.type for pair in output.statistics.values() for value in pair} == {"cuda"}


def test_all_together_give_finite_losses_and_gradients_everywhere(encoder, vocabulary, batch, generator) -> None:
    objectives = [
        MaskedLanguageModeling(),
        NextSentencePrediction(),
        ReplacedTokenDetection(),
        CausalLanguageModeling(),
    ]
    for objective in objectives:
        objective.build(encoder, vocabulary)
    outputs = compute_objectives(encoder, objectives, batch, generator)
    sum(output.loss for output in outputs.values()).backward()
    for module in (encoder, *objectives):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def _two_processes(rank: int, address: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    values = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([10.0])][rank].requires_grad_()
    mean = global_mean(values.sum(), torch.tensor(len(values)), training=True)
    empty = global_mean(values.sum() * 0, torch.tensor(0), training=True)
    local = global_mean(values.sum(), torch.tensor(len(values)), training=False)
    results.put((rank, float(mean.detach()), float(empty.detach()), float(local.detach())))
    torch.distributed.destroy_process_group()


def test_unequal_processes_average_to_the_mean_of_the_whole_batch(tmp_path) -> None:
    context = children()
    results = context.Queue()
    address = f"file://{tmp_path / 'rendezvous'}"
    processes = [context.Process(target=_two_processes, args=(rank, address, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict((rank, rest) for rank, *rest in (results.get(timeout=60) for _ in range(2)))
    for process in processes:
        process.join(timeout=60)
    # The mean of the four values is 19 / 4; the mean of the two processes' means would be 6.5.
    assert (found[0][0] + found[1][0]) / 2 == pytest.approx(19 / 4)
    assert found[0][1] == found[1][1] == 0.0
    assert (found[0][2], found[1][2]) == (3.0, 10.0)
