"""Contrastive pretraining of texts and pictures in two towers (CLIP: arXiv:2103.00020, SigLIP: arXiv:2303.15343)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.transformer import prepare_transformers
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.pairs.joint_data_module import PAIRS, part_of
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import checkpoint_of, take_framing
from lit_pretrain.modules.contrastive.data_checks import check_replayed, fit_to_pairs, parts_of
from lit_pretrain.modules.contrastive.evaluation import ContrastiveEvaluation
from lit_pretrain.modules.contrastive.record import (
    arguments_of,
    check_kind,
    check_record,
    description_of,
    record_of,
    widen_scalars,
)
from lit_pretrain.modules.contrastive.replay import Replay, TextReplay, VisionReplay
from lit_pretrain.modules.contrastive.towers import (
    Sharing,
    Tower,
    TowerConfig,
    TowerName,
    check_replays,
    check_sharing,
    objective_of,
    share,
    starting_tower,
    width_of_embeddings,
)
from lit_pretrain.modules.contrastive.two_towers import TwoTowers
from lit_pretrain.modules.objective_mix import any_objectives, check_encoder, latest_evaluation
from lit_pretrain.modules.operations import encoder_operations, picture_operations
from lit_pretrain.modules.optimization import TrainedPart, make_optimizer
from lit_pretrain.modules.steps import total_steps
from lit_pretrain.objectives.contrastive import Contrastive, Pairs
from lit_pretrain.objectives.objective import Batch, ObjectiveOutput
from lit_pretrain.trainer_state import data_module_of
from lit_pretrain.weights.files import read_once

if TYPE_CHECKING:
    from PIL.Image import Image


class ContrastivePretraining(TwoTowers):
    """A tower of texts and one of pictures learn to embed what belongs together alike.

    Args:
        text_encoder: To train from scratch; null with `text.init_from`. Its vocabulary may wait for the tokenizer.
        vision_encoder: To train from scratch; null with `vision.init_from`. Pictures are cropped to its `image_size`.
        text: Where the tower of texts starts from, and when it is trained.
        vision: Where the tower of pictures starts from, and when it is trained.
        share_weights: `none`, or one Transformer for both: its whole `blocks`, or `blocks_except_norm`. If one tower is
            pretrained, its blocks are taken.
        blocks_from: Whose blocks serve both, `text` or `vision`; needed where both towers are pretrained. What is not
            shared (embeddings, norms) stays each tower's own.
        text_replay: Objectives on texts alone that the tower of texts is trained with too, from JointDataModule's
            `text`; null for none.
        vision_replay: Objectives on pictures alone, from its `vision`.
        embedding_width: Features of an embedding; null takes that of an open_clip checkpoint that a tower starts from,
            with its projection, else 256.
        objective: The loss; its temperature is that of an open_clip checkpoint that both towers start from, unless it
            is given or the loss is another.
        chunk_size: Pairs whose activations are held at a time, for batches that do not fit the memory: the loss and its
            gradients stay those of the whole batch, for one more forward pass. Null holds all.
        augmentation: What is varied of pictures in training. Mirroring is off: captions may tell left from right.
        **settings: `optimizer`, `schedule`, `gradient_clip_norm`, `compile_blocks`, `seed`,
            `gradient_checkpointing`, `average` and `non_finite`; see `BaseModule`.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | None = None,
        vision_encoder: VisionEncoder | None = None,
        text: TowerConfig = TowerConfig(),  # noqa: B008 (frozen)
        vision: TowerConfig = TowerConfig(),  # noqa: B008 (frozen)
        share_weights: Sharing = "none",
        blocks_from: TowerName | None = None,
        text_replay: TextReplay | None = None,
        vision_replay: VisionReplay | None = None,
        embedding_width: int | None = None,
        objective: Contrastive | None = None,
        chunk_size: int | None = None,
        augmentation: ImageAugmentation = ImageAugmentation(flip=0.0),  # noqa: B008 (frozen)
        **settings: Any,
    ) -> None:
        for name, value in (("embedding_width", embedding_width), ("chunk_size", chunk_size)):
            if value is not None and value < 1:
                raise UserError(f"model.{name} is {value}: give at least 1.")
        with read_once():
            starts = {
                "text": starting_tower("text", text_encoder, text, TextEncoder),
                "vision": starting_tower("vision", vision_encoder, vision, VisionEncoder),
            }
        keep = check_sharing(share_weights, text, vision, blocks_from)
        replays = {"text": text_replay, "vision": vision_replay}
        check_replays(replays, {"text": text, "vision": vision})
        for name, replay in replays.items():
            if replay is not None:
                check_encoder(replay.objectives, starts[name].encoder)
        super().__init__(None, **settings)
        share(starts["text"].encoder, starts["vision"].encoder, share_weights, keep)
        embedding_width = width_of_embeddings(embedding_width, starts)
        self.text_tower = Tower(starts["text"].encoder, embedding_width, starts["text"].projection)
        self.vision_tower = Tower(starts["vision"].encoder, embedding_width, starts["vision"].projection)
        self.configs = {"text": text, "vision": vision}
        for name, tower in self.towers.items():
            if self.configs[name].always_locked:
                tower.lock()
        self.share_weights = share_weights
        self.embedding_width = embedding_width
        self.objective = objective_of(objective, starts)
        given = {name: replay for name, replay in replays.items() if replay is not None}
        self.replays = cast(Mapping[str, Replay], torch.nn.ModuleDict(given))
        self.chunk_size = chunk_size
        self.augmentation = augmentation
        self.tokenizer: TextTokenizer | None = starts["text"].tokenizer
        self.lineage = {
            f"{name}_{key}": value for name, start in starts.items() for key, value in start.lineage.items()
        }
        # How long captions and how large pictures are that it has learned from.
        self.inputs: dict[str, int] = {}
        self.built = False
        self.evaluation = ContrastiveEvaluation()

    @property
    def monitor(self) -> tuple[str, str]:
        """The metric by which checkpoints are compared: with few pairs the loss rises while recall still does too."""
        return "validation/mean_recall", "max"

    # -- before training

    def configure_model(self) -> None:
        """Take the data's tokenizer, and check that data, towers and trainer fit.

        Raises:
            UserError: If they do not.
        """
        data = data_module_of(self._trainer) if self._trainer is not None else None
        parts = parts_of(data) if hasattr(data, "batch_fields") else {}
        if not self.built:
            self.build(parts)
            self.built = True
        if self._trainer is not None and self._trainer.training:
            if self._trainer.accumulate_grad_batches > 1:
                raise UserError(
                    f"trainer.accumulate_grad_batches is {self._trainer.accumulate_grad_batches}, and pairs of "
                    "different batches would not be compared: set it to 1, data.batch_size to the whole batch, and "
                    "model.chunk_size to what fits the memory."
                )
            if parts:
                self.objective.fit_to(self.batch_size)
        super().configure_model()

    def build(self, parts: dict[str, Any]) -> None:
        """Take the tokenizer and make what waits for it; see `configure_model`.

        Args:
            parts: Data modules by what they are for; empty without data.
        """
        if parts:
            check_replayed(self.replays, parts)
            fit_to_pairs(self, parts[PAIRS])
        if self.tokenizer is None:
            raise UserError("ContrastivePretraining has no tokenizer: train with data of pairs (PairDataModule).")
        self.text_encoder.set_vocabulary(self.tokenizer.vocabulary_size)
        if self.text_encoder.lacks_ngrams and parts:
            raise UserError(
                "The text tower has ngrams, and which ones are frequent is counted in pretraining on text: start it "
                "from such a run, or leave encoder.ngrams out."
            )
        for name, replay in self.replays.items():
            replay.build(self.towers[name].encoder, self.tokenizer, parts.get(name))
        prepare_transformers(self, self.compile_blocks, self.gradient_checkpointing)

    @property
    def batch_size(self) -> int:
        """Pairs of a training batch of all processes."""
        return parts_of(data_module_of(self.trainer))[PAIRS].batch_size * self.trainer.world_size

    def trained_modules(self) -> list[torch.nn.Module]:
        """Both towers, the temperature, and the heads of what is replayed."""
        return [self.text_tower, self.vision_tower, self.objective, *self.replays.values()]

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """AdamW, with the rate of each tower and the step at which it is unlocked."""
        heads = [self.objective, *(tower.projection for tower in self.towers.values())]
        steps = total_steps(self.trainer)
        parts = [TrainedPart(head) for head in heads]
        for name, tower in self.towers.items():
            config = self.configs[name]
            start = config.first_step(steps, name)
            parts.append(TrainedPart(tower.encoder, config.learning_rate_factor, start, label=f"{name}_encoder"))
        parts += [TrainedPart(objective) for replay in self.replays.values() for objective in replay.objectives]
        return make_optimizer(parts, self.optimizer_config, fused)

    def bound(self) -> None:
        """The temperature stays within its bounds, in whatever is saved next too."""
        self.objective.clamp()

    # -- steps

    def contrast(self, pairs: Batch, generator: torch.Generator) -> ObjectiveOutput:
        """The contrastive loss of a training batch of all processes, its pictures varied."""
        draws = self.augmentation.draw(pairs["images"], self.vision_encoder.image_size, generator)
        texts, pictures = self.embed_texts(pairs), self.embed_pictures(pairs["images"], draws)
        return self.objective.compute(Pairs(texts, pictures, pairs["caption_key"], pairs["picture_key"]))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch of all processes; every draw comes from (seed, global step, batch, rank)."""
        parts = self.step_parts(batch_index)
        batches = batch if PAIRS in batch else {PAIRS: batch}
        pairs = batches[PAIRS]
        output = self.contrast(pairs, self.generator_for("augmentation", *parts))
        losses: dict[str, Tensor] = {self.objective.loss: output.loss}
        for name, replay in self.replays.items():
            draws = partial(self.generator_for, "replay", name, *parts)
            losses[f"{name} replay"], replayed = replay.train_on(self.towers[name].encoder, batches[name], draws)
            self.count_training(f"train/{name}", replayed)
        loss = torch.stack([*losses.values()]).sum()
        self.watch_losses(loss, losses, pairs)
        self.count_training("train", output.statistics)
        self.note_learning_rate()
        return loss

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Embed some pictures with all their captions, or count a batch of what is replayed."""
        self.evaluation_step("validation", batch, batch_index)

    def test_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`, on the test data."""
        self.evaluation_step("test", batch, batch_index)

    def evaluation_step(self, stage: str, batch: Batch, batch_index: int) -> None:
        """Embed a batch, to be put together with the others; of a replay, with the same draws always."""
        if (name := part_of(batch)) == PAIRS:
            self.evaluation.add(self, batch)
            return
        generator = self.evaluation_generator(batch_index)
        self.count(f"{stage}/{name}", batch, self.replays[name].evaluate(self.towers[name].encoder, batch, generator))

    def on_validation_epoch_end(self) -> None:
        """Report what the whole validation set says, and what should be looked at."""
        self.evaluation_end("validation")

    def on_test_epoch_end(self) -> None:
        """Report what the whole test set says."""
        self.evaluation_end("test")

    def evaluation_end(self, stage: str) -> None:
        """Log what the embeddings of all processes say, and the means of what is replayed."""
        if stage in parts_of(data_module_of(self.trainer))[PAIRS].galleries:
            figures = self.evaluation.finish(self, stage)
            self.log_dict({f"{stage}/{name}": value for name, value in figures.items()})
        self.report(stage)

    def report(self, stage: str) -> None:
        """As the base's, and of what is replayed."""
        for name in ("", *(f"/{name}" for name in self.replays)):
            super().report(stage + name)

    def means(self, stage: str) -> dict[str, Tensor]:
        """As the base's; of a training that replays, the sum of all losses too."""
        found = super().means(stage)
        if stage == "train" and self.replays:
            found["train/total_loss"] = found["train/loss"]
            for name, replay in self.replays.items():
                replayed = super().means(f"train/{name}").get(f"train/{name}/loss", 0.0)
                found["train/total_loss"] = found["train/total_loss"] + replay.weight * replayed
        return found

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Perplexities of what is replayed; the means of training pairs are kept for what a validation suggests."""
        if "duplicate_captions" in means:
            self.evaluation.training_means = {name: float(value) for name, value in means.items()}
        metrics = [replay.derived(means) for replay in self.replays.values()]
        return {name: value for values in metrics for name, value in values.items()}

    def step_cost(self, batch: Batch) -> dict[str, float]:
        """Pairs, tokens of text (padding included) and operations of a training batch; see `modules.operations`.

        Tokens and operations are those of what is replayed too. What a chunk is encoded twice for is memory, and does
        not count.
        """
        batches = batch if PAIRS in batch else {PAIRS: batch}
        samples, length = batches[PAIRS]["input_ids"].shape
        flops = samples * (encoder_operations(self.text_encoder, length) + picture_operations(self.vision_encoder))
        cost = {"samples": samples, "tokens": samples * length, "flops": flops}
        for name, replay in self.replays.items():
            replayed = replay.cost(self.towers[name].encoder, batches[name])
            cost["tokens"] += replayed.get("tokens", 0)
            cost["flops"] += replayed["flops"]
        return cost

    # -- telling

    @torch.no_grad()
    def panels(self, count: int = 8) -> "dict[str, Image]":
        """Pictures found for captions and captions found for pictures; empty before any validation."""
        return self.evaluation.panels(parts_of(data_module_of(self.trainer))[PAIRS], count)

    def chance(self) -> dict[str, float]:
        """As the base's, of any picture for any text, and of what is replayed."""
        figures = self.evaluation.chance(self)
        if self._trainer is not None:
            parts, measured = parts_of(data_module_of(self._trainer)), latest_evaluation(self._trainer)
            for name, replay in self.replays.items():
                figures |= {f"{name}/{key}": value for key, value in replay.chance(parts.get(name), measured).items()}
        return figures

    def describe(self) -> dict[str, Any]:
        """What this is made of, for the record of the run."""
        return description_of(self)

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record; weights that a loss has spoilt are not saved over good ones."""
        super().on_save_checkpoint(checkpoint)
        data = data_module_of(self._trainer) if self._trainer is not None else None
        checkpoint["lit_pretrain"] = record_of(self, data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another kind, shape or tokenizer, naming what differs."""
        super().on_load_checkpoint(checkpoint)
        record = checkpoint.get("lit_pretrain") or {}
        check_kind(record, self)
        if self.tokenizer is None:
            self.tokenizer = tokenizer_from_json(record["tokenizer"])
            self.configure_model()
        self.inputs = self.inputs or dict(record.get("inputs", {}))
        check_record(record, self)
        widen_scalars(checkpoint)
        # Where the weights come from in truth, whatever this was built from to take them.
        self.lineage = dict(record["lineage"])
        if self._trainer is None or not self._trainer.training:
            take_framing(self.vision_encoder, record)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "ContrastivePretraining":
        """Build a module with both towers of a CLIP in open_clip's format, their projections and its temperature.

        Args:
            source: A directory, a file, or "owner/name" on the hub, as for `load_starting_point`.

        Raises:
            UserError: If it cannot be loaded.
        """
        start = TowerConfig(init_from=str(source))
        return cls(text=start, vision=start).eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "ContrastivePretraining":
        """Build a module with a checkpoint's towers and weights; no data or config is needed.

        Args:
            path: The checkpoint; or a run's name or id, "RUN:best", "last".

        Raises:
            UserError: If there is no such file or run, or it is not a checkpoint of contrastive pretraining.
        """
        checkpoint, record = checkpoint_of(cls, path)
        arguments = arguments_of(record)
        with any_objectives(arguments["text_encoder"]):
            module = cls(**arguments)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()
