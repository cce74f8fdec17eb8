"""Fine-tuning an encoder of text or of pictures to a task, from pretrained weights or from none.

The encoder is trained with a linear head on its pooled features (BERT: Devlin et al. 2019, arXiv:1810.04805; for
pictures He et al. 2022, arXiv:2111.06377, appendix A), a new one unless what is started from has one that tells the
same labels. Layer-wise learning-rate decay (Clark et al. 2020, arXiv:2003.10555) lets the first blocks move less; a
head that starts as a fitted linear probe (Kumar et al. 2022, arXiv:2202.10054) does not distort what was pretrained
while it is still random.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.dropout import Dropout
from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.transformer import prepare_transformers
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.loading import SURPLUS
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.measures.linear_probe import Regularization, check_regularization
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.modules.checkpoints import checkpoint_of, encoder_class_named, take_framing
from lit_pretrain.modules.fine_tuning.modalities import make_modality
from lit_pretrain.modules.fine_tuning.picture_mixing import MixingConfig, mix_pictures
from lit_pretrain.modules.fine_tuning.prediction import answer
from lit_pretrain.modules.fine_tuning.probe_head import fit_probe_head
from lit_pretrain.modules.fine_tuning.record import check_record, description_of, record_of, take_record
from lit_pretrain.modules.fine_tuning.tasks import Task, class_weights_of, count_none, make_task
from lit_pretrain.modules.freezing import FreezingConfig, check_blocks, freeze, unfreezing_steps
from lit_pretrain.modules.growth import GrowthConfig, check_growth, start_from
from lit_pretrain.modules.optimization import (
    TrainedPart,
    layer_parts,
    make_optimizer,
)
from lit_pretrain.modules.starting_points import (
    StartingPoint,
    check_start_given,
    named_classes,
    with_settings,
)
from lit_pretrain.modules.statistics import without_any
from lit_pretrain.modules.steps import total_steps
from lit_pretrain.modules.strategies import gathered
from lit_pretrain.objectives.objective import Batch, global_mean
from lit_pretrain.required import required
from lit_pretrain.trainer_state import data_module_of


class FineTuning(BaseModule):
    """Classes, several classes or numbers of texts, pairs of texts, or pictures; the data tells which.

    Args:
        encoder: An encoder to train from scratch; null with `init_from`, whose encoder is taken.
        init_from: Where the encoder comes from: "last", a run's name or id, a checkpoint of ours, a directory of BERT
            weights (transformers), ViT weights (timm) or a CLIP of open_clip's, whose tower of pictures is taken, or a
            name of these.
        pretrained: Whether `init_from`'s weights are taken; false takes its architecture and tokenizer only, with new
            weights: the training from scratch that pretraining is compared with.
        pooling: `cls`, `mean` or `map` in the place of the encoder's own.
        dropout: On the branches of the blocks, in the place of the encoder's own.
        attention_dropout: On the weights of the attention, in the place of the encoder's own; public BERTs have 0.1,
            which takes a quarter of a step's time on a CPU.
        stochastic_depth: Probability of skipping the last block's branches, in the place of the encoder's own.
        head_dropout: On the pooled features.
        token_dropout: Share of a text's tokens that are hidden in training, others at every step; 0 for none.
        freeze: Which parts are not trained, or not from the start.
        augmentation: What is varied of pictures in training.
        mixing: Mixup and CutMix of pictures; off by default.
        layer_decay: Factor of the learning rate from one block to the one before it; 1 for the same everywhere.
        head_factor: Factor of the learning rate of the head, and of what `pooling` adds to a pretrained encoder.
        linear_probe_first: Whether the head starts as a linear probe fitted to frozen features of the training data
            (10,000 samples at most), for one label each.
        probe_regularization: Of that probe, scikit-learn's C; `chosen` by cross-validation serves few labels best.
        label_smoothing: Share of a label that is spread over all classes.
        class_weights: Factors of the classes' losses, or `balanced` for the inverse of their frequencies.
        architecture: timm's name for the ViT whose weights a file holds, where `init_from` is one without a config.json
            beside it; with the tag of its training ("vit_base_patch16_224.mae"), which decides the colours' mean.
        grow: How large the encoder of `init_from` becomes: more blocks, positions or pixels.
        **settings: `optimizer`, `schedule`, `gradient_clip_norm`, `compile_blocks`, `seed`,
            `gradient_checkpointing`, `average` and `non_finite`; see `BaseModule`.
    """

    def __init__(
        self,
        encoder: TextEncoder | VisionEncoder | None = None,
        init_from: str | None = None,
        pretrained: bool = True,
        pooling: Literal["cls", "mean", "map"] | None = None,
        dropout: float | None = None,
        stochastic_depth: float | None = None,
        head_dropout: float = 0.0,
        token_dropout: float = 0.0,
        freeze: FreezingConfig = FreezingConfig(),  # noqa: B008 (frozen)
        augmentation: ImageAugmentation = ImageAugmentation(),  # noqa: B008 (frozen)
        mixing: MixingConfig = MixingConfig(),  # noqa: B008 (frozen)
        layer_decay: float = 1.0,
        head_factor: float = 1.0,
        linear_probe_first: bool = False,
        probe_regularization: Regularization = 1.0,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        architecture: str | None = None,
        attention_dropout: float | None = None,
        grow: GrowthConfig = GrowthConfig(),  # noqa: B008 (frozen)
        **settings: Any,
    ) -> None:
        check_start_given(type(self).__name__, encoder, init_from, architecture)
        check_growth(init_from, grow)
        for name, value in (("layer_decay", layer_decay), ("head_factor", head_factor)):
            check_number(f"model.{name}", value, above=0)
        for name, value in (("label_smoothing", label_smoothing), ("head_dropout", head_dropout)):
            if not 0.0 <= value < 1.0:
                raise UserError(f"model.{name} is {value}: give a share from 0 to below 1.")
        check_regularization(probe_regularization, f"model.probe_regularization is {probe_regularization}")
        if encoder is not None:
            start = StartingPoint(encoder, None, {"init_from": "scratch"})
        if init_from is not None:
            start = start_from(init_from, pretrained, architecture, grow)
        changes = {
            "pooling": pooling,
            "transformer.dropout": dropout,
            "transformer.attention_dropout": attention_dropout,
            "transformer.stochastic_depth": stochastic_depth,
        }
        start = with_settings(start, changes)
        if init_from is not None and isinstance(start.encoder, TextEncoder):
            start.encoder.check_pooling()
        check_blocks(start.encoder, freeze)
        super().__init__(start.encoder, **settings)
        # Heads of a pretraining are of no use, and would keep its checkpoint mapped into memory.
        self.start = replace(start, objective_heads=(), format_heads={})
        self.lineage = dict(start.lineage)
        # Parameters of the encoder that no pretraining has seen: they are trained as the head is.
        self.fresh = list(start.fresh)
        self.tokenizer = start.tokenizer
        self.modality = make_modality(start.encoder, augmentation, token_dropout)
        self.head_dropout = Dropout(head_dropout)
        self.freezing = freeze
        self.mixing = mixing
        self.layer_decay = layer_decay
        self.head_factor = head_factor
        self.linear_probe_first = linear_probe_first
        self.probe_regularization = probe_regularization
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.facts: LabelFacts | None = None
        self.task: Task | None = None
        self.head: nn.Linear | None = None
        # A ModuleDict of them.
        self.metrics = cast(dict[str, MetricCollection], nn.ModuleDict())
        self._frozen: list[nn.Module] = []

    @property
    def classes(self) -> list[str]:
        """Names of the classes by number; empty for numbers, or before the data is known."""
        return [] if self.facts is None else list(self.facts.classes)

    @property
    def known_task(self) -> Task:
        """The task, once the labels are known."""
        assert self.task is not None
        return self.task

    @property
    def monitor(self) -> tuple[str, str]:
        """The metric by which checkpoints are compared, and whether its `max` or `min` is best."""
        task = self.known_task
        return f"validation/{task.monitor}", task.mode

    # -- before training

    def configure_model(self) -> None:
        """Make the head once the labels are known.

        Raises:
            UserError: If the data has no labels, is of another modality, or does not fit the encoder.
        """
        if self.head is None:
            self.build()
        # Outside of training a checkpoint that is read after this brings them.
        if self._trainer is not None and self._trainer.training and getattr(self.encoder, "lacks_ngrams", False):
            raise UserError(
                "The encoder has ngrams, and which ones are frequent is counted in pretraining on text: set "
                "model.init_from to such a run (pretrained: false keeps its n-grams only), or leave encoder.ngrams out."
            )
        super().configure_model()

    def build(self) -> None:
        """The head, and what the data says of texts and labels; see `configure_model`."""
        data = data_module_of(self._trainer) if self._trainer is not None else None
        if data is not None:
            self.facts = getattr(data, "label_facts", None) or self.facts
            if self.facts is None and required(self._trainer).predicting:
                # The checkpoint, which is read after this, knows the classes.
                return
        if self.facts is None or (self.facts.task != "regression" and len(self.facts.classes) < 2):
            raise UserError("FineTuning needs labels of at least two classes, or numbers: set data.label_column.")
        if data is not None:
            self.modality.check(data)
            self.modality.fit_to(data, self.encoder, required(self._trainer).training)
            self.take_tokenizer(getattr(data, "tokenizer", None))
        if self.mixing.on and (self.modality.name != "pictures" or self.facts.task == "regression"):
            raise UserError("model.mixing mixes pictures of classes: leave it out for text and for numbers.")
        self.task = make_task(self.facts, self.label_smoothing, self.weights_of_classes())
        self.head = nn.Linear(self.encoder.width, self.task.outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.take_head()
        self.metrics.update({stage: self.task.metrics() for stage in ("validating", "testing")})
        self.freeze_parts()
        prepare_transformers(self, self.compile_blocks, self.gradient_checkpointing)

    def freeze_parts(self) -> None:
        """Stop the gradients of what is not trained."""
        self._frozen = freeze(self.encoder, self.freezing, self.fresh)
        self.train(self.training)

    def take_tokenizer(self, tokenizer: Any) -> None:
        """Take the data's tokenizer where the weights have none; else the two must be the same.

        Raises:
            UserError: If they are not.
        """
        if self.modality.name != "text":
            return
        if self.tokenizer is None:
            self.tokenizer = tokenizer
        if self.tokenizer is None:
            raise UserError("FineTuning on text needs a tokenizer: set data.tokenizer to a directory that has one.")
        if tokenizer is not None and tokenizer.hash != self.tokenizer.hash:
            raise UserError(
                f"data.tokenizer is tokenizer {tokenizer.hash}, and the weights of {self.lineage['init_from']} were "
                f"trained with tokenizer {self.tokenizer.hash}: leave data.tokenizer out, so that theirs is taken."
            )
        self.encoder.set_vocabulary(self.tokenizer.vocabulary_size)

    @torch.no_grad()
    def take_head(self) -> None:
        """Let the head start as that of what is started from, if it tells these labels; else it is named."""
        start_head = self.start.head
        if start_head is None:
            return
        facts, head, reason = required(self.facts), required(self.head), ""
        if start_head.task not in (None, facts.task):
            reason = f"of the task {start_head.task}, the data's is {facts.task}"
        elif facts.task == "regression":
            head.weight.copy_(start_head.weight / facts.std)
            head.bias.copy_((start_head.bias - facts.mean) / facts.std)
        elif lacking := [name for name in facts.classes if name not in start_head.classes]:
            reason = (
                f"it knows {named_classes(start_head.classes) or 'no names of its classes'}, not "
                f"{named_classes(lacking)}"
            )
        else:
            rows = [start_head.classes.index(name) for name in facts.classes]
            head.weight.copy_(start_head.weight[rows])
            head.bias.copy_(start_head.bias[rows])
        if reason:
            self.start = self.start.without_head(reason)

    def weights_of_classes(self) -> Tensor | None:
        """Factors (C,) of the classes' losses, or null."""
        return None if self.class_weights is None else class_weights_of(self.class_weights, required(self.facts))

    def train(self, mode: bool = True) -> "FineTuning":
        """As nn.Module's, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in getattr(self, "_frozen", []):
            module.eval()
        return self

    def trained_modules(self) -> list[nn.Module]:
        """Encoder and head."""
        return [self.encoder, self.head]

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """AdamW, with a learning rate for each block."""
        starts = unfreezing_steps(self.encoder, self.freezing, total_steps(self.trainer))
        parts = [TrainedPart(required(self.head), self.head_factor, label="head")]
        parts.append(TrainedPart(self.encoder, self.head_factor, names=frozenset(self.fresh), label="head"))
        parts += layer_parts(self.encoder, self.layer_decay, starts)
        return make_optimizer(parts, self.optimizer_config, fused)

    def on_fit_start(self) -> None:
        """Say what is started from, and fit the head if it starts as a probe."""
        if self.trainer.ckpt_path is not None:
            return
        if self.linear_probe_first:
            self.start = self.start.without_head("linear_probe_first fits another")
            with gathered(required(self.trainer.strategy.model), writeback=True):
                fit_probe_head(self)
        if self.trainer.is_global_zero and (self.start.fresh or self.start.left_out or self.start.head is not None):
            print(self.start.told(), flush=True)

    def on_predict_start(self) -> None:
        """Refuse to answer with a head that has learned nothing."""
        if self.head is None:
            raise UserError("What to predict is not known without a fine-tuned checkpoint: give it by --ckpt_path.")
        super().on_predict_start()

    # -- steps

    def features(self, batch: Batch) -> Tensor:
        """Pooled features (B, D) of a batch as it is, nothing varied."""
        return self.modality.features(self.encoder, batch)

    def logits(self, batch: Batch) -> Tensor:
        """The head's outputs (B, outputs), in float32 at least, of a batch as it is."""
        return at_least_float32(required(self.head)(self.head_dropout(self.features(batch))))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch, every draw from (seed, global step, batch, rank)."""
        parts, shares = self.step_parts(batch_index), self.accumulation.shares(self, batch, batch_index)
        labels = targets = batch["label"]
        task = self.known_task
        inputs = self.modality.varied(self.encoder, batch, self.generator_for("augmentation", *parts))
        if self.mixing.on:
            if len(labels) % 2:
                raise UserError(
                    f"model.mixing pairs pictures, and a batch has {len(labels)}: make data.batch_size even."
                )
            inputs["images"], targets = mix_pictures(inputs["images"], labels, task.outputs, self.mixing, parts)
        features = self.head_dropout(self.modality.encode(self.encoder, inputs))
        logits = at_least_float32(required(self.head)(features))
        total, weight = task.total(logits, targets, training=True), task.weight(targets, training=True)
        statistics = {"loss": (total.detach(), weight), **self.modality.statistics(batch)}
        if not self.mixing.on:
            statistics |= task.correct(logits.detach(), labels)
        if batch.get(SURPLUS):
            # Another process learns from these samples.
            total, weight = total * 0.0, weight * 0.0
            statistics = without_any(statistics)
        loss = global_mean(total, weight, training=True)
        self.watch_losses(loss, {required(self.facts).task: loss}, batch)
        self.count_training("train", statistics)
        self.note_learning_rate()
        return shares.of("loss") * loss

    @property
    def fields_ahead(self) -> tuple[str, ...]:
        """The labels, whose classes may be weighted; an epoch's last batch is smaller, too."""
        return ("label",)

    def count_terms(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """The weight of a training batch's losses, its labels mixed as its pictures are going to be."""
        targets = batch["label"]
        if self.mixing.on:
            size, parts = self.encoder.image_size, self.draw_parts(batch_index)
            # How labels are mixed depends on the pictures' size alone.
            images = torch.zeros(len(targets), 1, size, size, device=targets.device, dtype=torch.float32)
            targets = mix_pictures(images, targets, self.known_task.outputs, self.mixing, parts)[1]
        weight = self.known_task.weight(targets, training=True)
        return {"loss": weight * 0.0 if batch.get(SURPLUS) else weight}

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Metrics of one batch."""
        return self.evaluation_step("validation", batch)

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """As `validation_step`, on the test data."""
        return self.evaluation_step("test", batch)

    def evaluation_step(self, stage: str, batch: Batch) -> dict[str, Any]:
        """Count one batch; returns its `logits`, `label` and `sample_id`, for reports."""
        logits, labels, task = self.logits(batch), batch["label"], self.known_task
        self.count(stage, batch, {"loss": (task.total(logits, labels), task.weight(labels))})
        outputs = {"logits": logits, "label": labels, "sample_id": batch["sample_id"]}
        if batch.get(SURPLUS):
            count_none(self.metrics[METRICS_OF[stage]])
            return {name: value[:0] for name, value in outputs.items()}
        self.metrics[METRICS_OF[stage]].update(*task.for_metrics(logits, labels))
        return outputs

    def report(self, stage: str) -> None:
        """As the base's, with the task's metrics."""
        super().report(stage)
        if stage in METRICS_OF:
            metrics = self.metrics[METRICS_OF[stage]]
            self.log_dict({f"{stage}/{name}": value.float() for name, value in metrics.compute().items()})
            # A validation before a training is in inference mode, whose tensors nothing else may change.
            with torch.inference_mode(False):
                metrics.reset()

    def chance(self) -> dict[str, float]:
        """As the base's, by how often each class occurs among the training labels."""
        return {} if self.task is None else self.task.chance()

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """`sample_id`, the task's answers, and the pooled features as `embedding` (B, D)."""
        embedding = self.features(batch)
        answers = self.known_task.answers(required(self.head)(embedding).float())
        return {"sample_id": batch["sample_id"], **answers, "embedding": embedding.float()}

    def predict(self, samples: Any, batch_size: int = 64) -> list[dict[str, Any]]:
        """Answer raw samples.

        Args:
            samples: A list of texts, of pairs of texts (tuples), of pictures of Pillow's or of their file names; or
                one of these alone, which has one answer.
            batch_size: Samples at a time.

        Returns:
            For each, `label` and `probability` (of every class by its name), or `value`.
        """
        return answer(self, samples, batch_size)

    def step_cost(self, batch: Batch) -> dict[str, float]:
        """Samples, tokens and floating-point operations of one training batch, by the rule of `modules.operations`."""
        return self.modality.step_cost(self.encoder, batch)

    # -- telling

    def describe(self) -> dict[str, Any]:
        """What this is made of, for the record of the run."""
        return description_of(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build this again without any config."""
        super().on_save_checkpoint(checkpoint)
        data = data_module_of(self._trainer) if self._trainer is not None else None
        checkpoint["lit_pretrain"] = record_of(self, data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another kind, shape, tokenizer or other classes; take what it knows."""
        super().on_load_checkpoint(checkpoint)
        record = checkpoint.get("lit_pretrain") or {}
        check_record(record, self)
        take_record(record, self)
        if self._trainer is None or not self._trainer.training:
            take_framing(self.encoder, record)
        self.configure_model()
        # What is fresh may be known only now.
        self.freeze_parts()

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "FineTuning":
        """Build a module with a checkpoint's encoder, labels and weights; no data or config is needed.

        Args:
            path: The checkpoint; or a run's name or id, "RUN:best", "last".
        """
        checkpoint, record = checkpoint_of(cls, path)
        module = cls(encoder_class_named(record["encoder_class"]).from_settings(record["encoder"]))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()


# nn.Module has a method `train`; a stage's metrics are kept under names of their own.
METRICS_OF = {"validation": "validating", "test": "testing"}
