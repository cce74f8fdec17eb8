"""Accumulated batches and processes (gloo, DDP): the gradient of one process with one batch of all samples."""

import datasets
import numpy
import pytest
import small_pictures
import text_corpus
import torch
from child_processes import both_ranks
from labelled_texts import TOKENIZER, make_encoder, make_texts, write_texts
from lightning.pytorch import Callback
from small_pictures import COLORS, draw

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.data import LabelledDataModule
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.loading import ResumableDataLoader
from lit_pretrain.data.randomness import derive_seed
from lit_pretrain.modules import FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.fine_tuning.picture_mixing import MixingConfig, mix_pictures
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import (
    BagOfWords,
    CausalLanguageModeling,
    Colorization,
    ContrastiveSpans,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
    Rotation,
    SentenceOrder,
    compute_objectives,
)
from lit_pretrain.trainer import Trainer


class Watch(Callback):
    """Keeps the gradients of each step as the optimiser gets them, before they are clipped, and those of a loss.

    And whether any is left after each batch.
    """

    def __init__(self, loss_of=None):
        self.loss_of, self.gradients, self.expected, self.left = loss_of, [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left.append(any(parameter.grad is not None for parameter in pl_module.parameters()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        names, parameters = zip(*pl_module.named_parameters(), strict=True)
        self.gradients.append({name: one.grad.to_dense().clone() for name, one in pl_module.named_parameters()})
        if self.loss_of is not None:
            found = torch.autograd.grad(self.loss_of(pl_module, trainer.datamodule), parameters)
            self.expected.append(dict(zip(names, found, strict=True)))


def text(directory, batch_size, *objectives, layout="sentence_pairs", **settings):
    """Without any draws: every token that can be is hidden."""
    data = text_corpus.make_data(directory / "texts.json", directory, layout=layout, batch_size=batch_size, **settings)
    return TextPretraining(text_corpus.make_encoder(), list(objectives), seed=0), data


def rows(directory, batch_size):
    """Tables with sparse gradients, but in one batch of all."""
    data = text_corpus.make_data(directory / "texts.json", directory, layout="segments", batch_size=batch_size)
    encoder = TextEncoder(transformer=TransformerConfig(depth=0, width=16), positions="rotary", ngrams=2, ngram_rows=60)
    optimizer = AdamWConfig(sparse_embeddings=batch_size < 24)
    return TextPretraining(encoder, [BagOfWords()], seed=0, optimizer=optimizer), data


def colors(directory, batch_size):
    """Some pictures are grey."""
    data = small_pictures.make_pictures(
        directory / "pictures.parquet", directory / "caches", batch_size=batch_size, label_column=None
    )
    objectives = [Rotation(weight=0.5), Colorization()]
    return VisionPretraining(small_pictures.make_encoder(), objectives, augmentation=AS_THEY_ARE, seed=0), data


def labelled(directory, batch_size, column, **settings):
    """24 texts of unequal lengths."""
    files = {"validation_data_files": str(directory / "few.parquet"), "cache_directory": str(directory)}
    data = make_texts(
        directory / "labelled.parquet", directory / "pieces", label_column=column, batch_size=batch_size, **files
    )
    return FineTuning(make_encoder(), seed=0, **settings), data


AS_THEY_ARE = ImageAugmentation(flip=0.0)
HIDDEN = {"probability": 0.99, "mask_share": 1.0, "random_share": 0.0}
WEIGHTS = [0.05, 0.3]
# What makes a module and its data of a batch size.
CASES = {
    "BERT": lambda *rest: text(*rest, MaskedLanguageModeling(**HIDDEN), NextSentencePrediction(weight=0.5)),
    "causal and words": lambda *rest: text(*rest, CausalLanguageModeling(), BagOfWords(weight=2.0), layout="segments"),
    "colours": colors,
    "rows": rows,
    "weighted classes": lambda *rest: labelled(*rest, "label", class_weights=WEIGHTS, label_smoothing=0.1),
    "several classes": lambda *rest: labelled(*rest, "topics", class_weights=WEIGHTS),
    "numbers": lambda *rest: labelled(*rest, "score"),
}


def gradients(name, directory, batch_size, processes=1, accumulated=1):
    """Of a step that sees the first 24 samples of an epoch."""
    torch.manual_seed(0)
    module, data = CASES[name](directory, batch_size)
    batches = -(-24 // (batch_size * processes))
    watch = fit(module, data, processes, limit_train_batches=batches, accumulate_grad_batches=accumulated)
    (found,) = watch.gradients
    # The next batch's activations do not lie beside gradients that have been used.
    assert watch.left == [True] * (batches - 1) + [False]
    return found


def fit(module, data, processes=1, loss_of=None, **settings):
    """An epoch without validation, and its gradients."""
    watch = Watch(loss_of)
    defaults = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="32-true",
        max_epochs=1,
        callbacks=[watch],
        enable_progress_bar=False,
        **defaults | settings,
    )
    trainer.fit(module, data)
    return watch


def shared_out(directory):
    """What one of two processes does: two batches of 6 each."""
    return {name: gradients(name, directory, 6, processes=2, accumulated=2) for name in CASES}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """24 training samples of every kind, or a few more."""
    directory = tmp_path_factory.mktemp("accumulation")
    generator = numpy.random.default_rng(0)
    pictures = [draw(index % len(COLORS), generator) for index in range(30)]
    # Batches have unequally many pictures with colours.
    pictures = [one.convert("L").convert("RGB") if generator.random() < 0.4 else one for one in pictures]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(str(directory / "pictures.parquet"))
    small_pictures.write_pictures(directory / "classes.parquet", count=16)
    text_corpus.write_corpus(directory / "texts.json", documents=8)
    write_texts(directory / "labelled.parquet", count=24)
    write_texts(directory / "few.parquet", count=4, seed=1)
    TOKENIZER.save(directory / "pieces")
    return directory


@pytest.fixture(scope="module")
def whole(directory):
    """Gradients of one process and one batch."""
    return {name: gradients(name, directory, 24) for name in CASES}


@pytest.fixture(scope="module")
def ranks(directory, whole):
    return both_ranks(shared_out, directory)


def compare(found, expected):
    assert found.keys() == expected.keys()
    scale = max(float(one.abs().max()) for one in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6 * scale, msg=name)


# Four batches; three, where an epoch has no more to be accumulated; and a last one that is smaller.
ARRANGEMENTS = [(name, size, 4) for name in CASES for size in (6, 8)] + [("weighted classes", 5, 5), ("numbers", 5, 5)]


@pytest.mark.parametrize(("name", "batch_size", "accumulated"), ARRANGEMENTS)
def test_accumulated_batches_are_one(directory, whole, name, batch_size, accumulated):
    compare(gradients(name, directory, batch_size, accumulated=accumulated), whole[name])


@pytest.mark.parametrize("name", CASES)
def test_processes_with_accumulated_batches_are_one(ranks, whole, name):
    for rank in ranks:
        compare(rank[name], whole[name])


def drawn(kind, batch_index):
    return torch.Generator().manual_seed(derive_seed(kind, 0, 0, batch_index, 0))


def two_of_three(module, data):
    """The loss of two batches with their own draws: each mean over all of its terms in both."""
    sums = {}
    for index in range(2):
        batch = data.batch_at(0, index)
        outputs = compute_objectives(module.encoder, module.objectives, batch, drawn("corruption", index))
        for name, output in outputs.items():
            for part, mean in (output.parts or {"loss": output.loss}).items():
                count = output.statistics[part][1]
                sums.setdefault((name, part), []).append((mean * count, count))
    means = {key: sum(total for total, _ in one) / sum(count for _, count in one) for key, one in sums.items()}
    return sum(module.weights[name] * mean for (name, _), mean in means.items())


@pytest.mark.parametrize("swapped", [False, True])
def test_numbers_that_are_drawn_are_known_before(directory, swapped):
    # ELECTRA's are drawn first, with more numbers than the positions take; whole words leave some places unused.
    objectives = [ReplacedTokenDetection(0.3), MaskedLanguageModeling(0.3, whole_word=True), NextSentencePrediction()]
    objectives[1].weight, objectives[2].weight = 2.0, 0.5
    if swapped:
        # Words are hidden in what is swapped before, by the same generator.
        objectives[2] = SentenceOrder(weight=0.5)
    module, data = text(directory, 8, *objectives, random_next="never" if swapped else "balanced")
    watch = fit(module, data, loss_of=two_of_three, limit_train_batches=2, accumulate_grad_batches=3)
    compare(watch.gradients[0], watch.expected[0])


def two_mixed(module, data):
    """The weighted loss of two batches of mixed pictures, over the weights of what they are mixed of."""
    total, weight, weights = 0.0, 0.0, torch.tensor([0.1, 1.0, 4.0])
    for index in range(2):
        batch = data.batch_at(0, index)
        images = module.modality.varied(module.encoder, batch, drawn("augmentation", index))["images"]
        images, targets = mix_pictures(images, batch["label"], 3, module.mixing, (0, 0, index, 0))
        logits = module.head(module.modality.encode(module.encoder, {"images": images}))
        total = total - (weights * targets * logits.log_softmax(dim=1)).sum()
        weight = weight + (weights * targets).sum()
    return total / weight


def test_weights_of_mixed_classes(directory):
    data = LabelledDataModule(
        data_files=str(directory / "classes.parquet"),
        path="parquet",
        image_column="image",
        validation_share=0.25,
        cache_directory=str(directory / "caches"),
        batch_size=6,
        seed=1,
    )
    mixing = MixingConfig(mixup=0.8, cutmix=1.0)
    module = FineTuning(
        small_pictures.make_encoder(), mixing=mixing, class_weights=[0.1, 1.0, 4.0], seed=0, augmentation=AS_THEY_ARE
    )
    watch = fit(module, data, loss_of=two_mixed, limit_train_batches=2, accumulate_grad_batches=2)
    compare(watch.gradients[0], watch.expected[0])


def test_what_is_not_as_one_batch_is_told(directory):
    module, data = text(directory, 8, ContrastiveSpans(), layout="segments")
    with pytest.warns(UserWarning, match="ContrastiveSpans compares .*accumulate_grad_batches 2 .* raise data.batch_s"):
        fit(module, data, limit_train_batches=2, accumulate_grad_batches=2)
    module, data = text(directory, 8, CausalLanguageModeling(), layout="segments")
    data.train_dataloader = lambda: ResumableDataLoader(data.train_dataset, data._train_sampler())
    with pytest.warns(UserWarning, match="does not hand out the batches of a step ahead"):
        fit(module, data, limit_train_batches=2, accumulate_grad_batches=2)
