"""What holds for every objective: it runs on a GPU, mixes with the others, and its global mean is exact."""

import pytest
import torch
from child_processes import children
from fake_device import NoWaiting, to_fake_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.objectives import (
    BagOfNgrams,
    BagOfWords,
    CausalLanguageModeling,
    Colorization,
    ContrastiveSpans,
    Jigsaw,
    LeJEPA,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    PatchLocation,
    ReplacedTokenDetection,
    Rotation,
    SentenceOrder,
    compute_objectives,
)
from lit_pretrain.objectives.chance import AnswerFrequencies
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
    SentenceOrder,
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


PICTURE_OBJECTIVES = [
    Rotation,
    PatchLocation,
    lambda: PatchLocation("tokens", drop_colour="channels"),
    lambda: Colorization(cell_share=0.5),
    MaskedImageModeling,
    lambda: Jigsaw(8),
    lambda: LeJEPA(views=2, directions=8, hidden_width=16, projection_width=8),
]


@pytest.mark.parametrize("make", [*OBJECTIVES, *PICTURE_OBJECTIVES])
def test_draws_and_counts_do_not_depend_on_the_precision(make, vocabulary, texts, batch) -> None:
    """Within a step of `bf16-true` or `64-true` what is created without a type has theirs."""
    torch.manual_seed(0)
    objective, config = make(), TransformerConfig(depth=1, width=16, heads=2)
    if make in PICTURE_OBJECTIVES:
        encoder = VisionEncoder(24, 4, transformer=VisionTransformerConfig(depth=1, width=16, heads=2))
        batch = {"images": ImageAugmentation("resized").vary(torch.randint(256, (4, 3, 24, 24)).byte(), 24, None)}
    else:
        encoder = TextEncoder(50, transformer=config, ngrams=2, ngram_rows=1000)
        encoder.embeddings.ngrams.set_keys(torch.arange(1000) * 2**20 // 20)
        batch = batch | texts if "halves" in objective.pass_name else batch
    objective.build(encoder, vocabulary)
    before, found = torch.get_default_dtype(), []
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        torch.set_default_dtype(kind)
        try:
            one = objective.make_pass(batch, encoder, torch.Generator().manual_seed(3))
            counted = objective(encoder, batch, torch.Generator().manual_seed(3)).statistics
        finally:
            torch.set_default_dtype(before)
        measured = {name: float(total / count) for name, (total, count) in counted.items()}
        frequencies = AnswerFrequencies(torch.ones(9) / 9, batch_size=4, statistics=measured)
        assert objective.chance(frequencies).keys() <= counted.keys()
        found.append({} if one is None else one.inputs | one.targets)
        assert torch.bfloat16 not in {value.dtype for pair in counted.values() for value in pair}
    assert found[0].keys() == found[1].keys()
    for other in found[1:]:
        for name, value in found[0].items():
            assert isinstance(value, bool) or torch.equal(value, other[name]), name


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


@pytest.mark.parametrize("make", OBJECTIVES)
@pytest.mark.parametrize("length", [24, 23])
def test_attention_has_a_mask_only_where_something_is_padded(make, length, vocabulary, batch) -> None:
    config = TransformerConfig(depth=2, width=16, heads=2)
    encoder = TextEncoder(50, transformer=config, ngrams=2, ngram_rows=8)
    objective = make()
    objective.build(encoder, vocabulary)
    for parameter in [*encoder.parameters(), *objective.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    full = {name: value[:, :length] if value.ndim == 2 else value for name, value in batch.items()}
    full["input_ids"] = torch.where(full["attention_mask"], full["input_ids"], 7)
    full["attention_mask"] = torch.ones_like(full["attention_mask"])
    seen = []
    for module in (encoder, objective):
        for part in module.modules():
            if isinstance(part, Block):
                part.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1:3]))
    losses = []
    for clean in (full, full | {"padded": False}, batch):
        losses.append(float(objective(encoder, clean, torch.Generator().manual_seed(3)).loss))
        masked = {mask is not None for mask, _ in seen}
        causal = {causal for _, causal in seen}
        # No token sees the padding that follows it; and of an odd number of tokens, one half is shorter.
        if isinstance(objective, CausalLanguageModeling):
            assert masked == {False} and causal == {True}
        else:
            halves = isinstance(objective, (ContrastiveSpans, BagOfWords, BagOfNgrams))
            assert masked == {clean.get("padded", True) or (halves and length == 23)} and causal == {False}
        seen.clear()
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_causal_features_of_real_tokens_are_those_with_a_mask(encoder, batch) -> None:
    real, ids = batch["attention_mask"], batch["input_ids"]
    masked = encoder.transformer(encoder.embeddings(ids), real, causal=True)
    torch.testing.assert_close(encoder.forward_features(ids, real, causal=True)[real], masked[real])
    (intermediate,) = encoder.forward_intermediates(ids, [-1], real, causal=True)
    torch.testing.assert_close(intermediate[real], masked[real])


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
