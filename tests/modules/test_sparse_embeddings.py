"""Tables that are updated at the rows that were read, against a table that is gone through as a whole by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from text_corpus import fit, fit_and_save, make_data, write_corpus
from torch import nn

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.row_look_up import look_up
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining, sparse_embeddings
from lit_pretrain.modules.clipping import clip_gradients
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig, make_optimizer, make_scheduler
from lit_pretrain.objectives import BagOfNgrams, BagOfWords, MaskedLanguageModeling

WIDTH, STEPS, CLIP = 8, 9, 0.7
CONFIG = AdamWConfig(learning_rate=0.1, weight_decay=0.5, beta2=0.9)
SCHEDULE = ScheduleConfig(warm_up=3)


class Tables(nn.Module):
    """Two tables and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(12, WIDTH, generator=generator))
        self.second = nn.Parameter(torch.randn(5, WIDTH, generator=generator))
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator))

    def sparse_tables(self, whole_pieces: bool) -> set[str]:
        return {"first", "second"}

    def losses(self, step, look):
        """Of the two batches of a step, whose ids repeat; rows 10 and 11 are never read, row 0 is padding."""
        generator = torch.Generator().manual_seed(step)
        for _ in range(2):
            ids = torch.randint(0, 10, (3, 6), generator=generator)
            few = torch.randint(0, 5, (3, 2), generator=generator)
            target = torch.randn(3, WIDTH, generator=generator)
            tokens = look(ids, self.first, 0).sum(dim=1) + look(few, self.second, None).sum(dim=1)
            # Read twice within a batch.
            yield ((tokens + look(ids[:, :1], self.first, 0)[:, 0]) @ self.matrix - target).square().mean()


def by_hand(module):
    """Whole tables at each step, in float64; the losses, and tables and matrix after each step."""
    module = copy.deepcopy(module).to(torch.float64)
    adamw = torch.optim.AdamW([module.matrix], betas=(0.9, CONFIG.beta2), eps=CONFIG.epsilon, weight_decay=0.5)
    moments = {"first": torch.zeros(12, dtype=torch.float64), "second": torch.zeros(5, dtype=torch.float64)}
    losses, after = [], []
    for step in range(STEPS):
        module.zero_grad()
        for loss in module.losses(step, nn.functional.embedding):
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        rate = CONFIG.learning_rate * SCHEDULE.factor(step, STEPS)
        with torch.no_grad():
            for name, moment in moments.items():
                table = getattr(module, name)
                moment.mul_(CONFIG.beta2).add_((1 - CONFIG.beta2) * table.grad.square().mean(dim=1))
                root = (moment / (1 - CONFIG.beta2 ** (step + 1))).sqrt() + CONFIG.epsilon
                table.mul_(1 - rate * CONFIG.weight_decay).sub_(rate * table.grad / root[:, None])
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        after.append({name: value.clone() for name, value in module.state_dict().items()})
    return losses, after


@pytest.mark.parametrize(("ngrams_alone", "pieces"), [(False, {"encoder.embeddings.token.weight"}), (True, set())])
def test_word_pieces_may_stay_whole(ngrams_alone, pieces):
    encoder = TextEncoder(30, transformer=TransformerConfig(depth=0, width=16), ngrams=2, ngram_rows=5)
    ngrams = BagOfNgrams()
    ngrams.build(encoder)
    module = nn.ModuleDict({"encoder": encoder, "ngrams": ngrams})
    found = set(sparse_embeddings.sparse_tables(module, ngrams_alone))
    assert found == {"encoder.embeddings.ngrams.table", "ngrams.decoder.weight"} | pieces
    sparse_embeddings.begin(module, SingleDeviceStrategy(), ngrams_alone)
    token = encoder.embeddings.token.weight
    look_up(torch.tensor([3]), token).sum().backward()
    assert token.grad.is_sparse == bool(pieces)


def test_rows_move_as_if_whole_tables_were_gone_through():
    module = Tables()
    expected_losses, expected = by_hand(module)
    sparse_embeddings.begin(module, SingleDeviceStrategy())
    module.register_state_dict_pre_hook(sparse_embeddings.settle)
    optimizer = make_optimizer([module], CONFIG)
    scheduler = make_scheduler(optimizer, SCHEDULE, STEPS)
    trainer = SimpleNamespace(strategy=SimpleNamespace(model=module), precision_plugin=Precision())
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for loss in module.losses(step, look_up):
            loss.backward()
            losses.append(loss.item())
        assert module.first.grad.is_sparse and module.second.grad.is_sparse
        assert set(module.first.grad.coalesce().indices()[0].tolist()) <= set(range(1, 10))
        sparse_embeddings.gather_gradients(module.parameters())
        clip_gradients(trainer, optimizer, CLIP, "norm")
        unread = module.first[11].clone()
        optimizer.step()
        # What it loses by the decay is pending.
        assert torch.equal(module.first[11], unread)
        scheduler.step()
        # Once in between, and at the end.
        if step in (4, STEPS - 1):
            for name, value in module.state_dict().items():
                torch.testing.assert_close(value, expected[step][name].float(), rtol=1e-5, atol=1e-5, msg=name)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for table in (module.first, module.second):
        shapes = {name: value.shape for name, value in optimizer.state[table].items()}
        assert shapes == {"step": (), sparse_embeddings.ROW_MOMENT: table.shape[:1]}
    # Values are clipped too, and the module is an ordinary one afterwards.
    clip_gradients(trainer, optimizer, 1e-4, "value")
    assert module.first.grad.to_dense().abs().max() == pytest.approx(1e-4)
    sparse_embeddings.end(module)
    module.zero_grad()
    next(module.losses(0, look_up)).backward()
    assert not module.first.grad.is_sparse


def make_module(*objectives, sparse=True):
    """Tables of word pieces and n-grams; the first has to have a table for the option."""
    torch.manual_seed(0)
    transformer = TransformerConfig(depth=0, width=16)
    encoder = TextEncoder(transformer=transformer, positions="rotary", ngrams=2, ngram_rows=60)
    config = AdamWConfig(learning_rate=1e-2, weight_decay=0.3, sparse_embeddings=sparse)
    return TextPretraining(encoder, objectives, seed=0, optimizer=config)


@pytest.fixture
def data(tmp_path):
    corpus = write_corpus(tmp_path / "texts.json", documents=20)
    return lambda: make_data(corpus, tmp_path, layout="segments")


def test_resumed_bit_for_bit_by_what_wrote_the_checkpoint(data, tmp_path):
    def train(directory, checkpoint=None, sparse=True):
        module = make_module(BagOfWords(), BagOfNgrams(), sparse=sparse)
        return fit_and_save(module, data(), tmp_path / directory, checkpoint)

    expected, found = train("straight"), train("resumed", tmp_path / "straight" / "step=3.ckpt")
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    # Word pieces, n-grams, and those that are drawn.
    assert sum(name.endswith(sparse_embeddings.ROW_MOMENT) for name in expected) == 3
    train("dense", sparse=False)
    for sparse, other in ((False, "straight"), (True, "dense")):
        with pytest.raises(UserError, match=f"resume with optimizer.sparse_embeddings {str(not sparse).lower()}"):
            train("refused", tmp_path / other / "step=3.ckpt", sparse)


def test_tables_that_predict_word_pieces_stay_as_they_are(data):
    module = make_module(MaskedLanguageModeling(), BagOfWords())
    trainer = fit(module, data(), max_steps=2)
    (sparse,) = [group["params"] for group in trainer.optimizers[0].param_groups if group["sparse"]]
    assert [id(table) for table in sparse] == [id(module.encoder.embeddings.ngrams.table)]
    with pytest.raises(UserError, match="nothing here has one: leave it out"):
        sparse_embeddings.begin(nn.Linear(2, 2), SingleDeviceStrategy())
    undeclared = type("Undeclared", (MaskedLanguageModeling,), {"ties_embeddings": False})
    with pytest.raises(UserError, match="gradient of all its rows.*ties_embeddings = True"):
        fit(make_module(undeclared(), BagOfWords()), data(), max_steps=2)


def test_shards_are_refused(data):
    module = make_module(BagOfWords())
    with pytest.raises(UserError, match="FSDPStrategy cuts into shards: take ddp"):
        sparse_embeddings.begin(module, FSDPStrategy())


def test_moments_of_rows_stay_in_float32():
    table = nn.Embedding(3, 4, dtype=torch.bfloat16)
    table.sparse_tables = lambda tied: {"weight"}
    sparse_embeddings.begin(table, SingleDeviceStrategy())
    optimizers = [make_optimizer([table], CONFIG) for _ in range(2)]
    look_up(torch.tensor([[1, 2]]), table.weight).sum().backward()
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    saved, loaded = (optimizer.state[table.weight][sparse_embeddings.ROW_MOMENT] for optimizer in optimizers)
    assert loaded.dtype == torch.float32 and torch.equal(loaded, saved)
