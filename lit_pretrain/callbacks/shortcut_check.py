"""Can a pretext task be solved by what should carry no signal? A small classifier tries, beside the training.

A network takes the easiest way: black corners tell a rotation, edges that go on or the lens's colour fringes tell where
a patch lies (Doersch et al. 2015, arXiv:1505.05192, section 4). Each objective names such features; where the
classifier is right more often than the most frequent answer, the task leaks.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_pretrain.data.loading import SURPLUS
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.vision_objective import Shortcut
from lit_pretrain.tracking.run_record import log_figures

HIDDEN_WIDTH = 64
LEARNING_RATE = 3e-3


class ShortcutCheck(Callback):
    """Logs shortcuts/<objective>/<feature>/accuracy and /chance at every validation.

    Chance is the share of the most frequent answer. The model itself is never touched.

    Args:
        every_n_batches: Training batches between two lessons of the classifiers.
        validation_batches: Validation batches of all processes that they are tried on.
    """

    def __init__(self, every_n_batches: int = 4, validation_batches: int = 10) -> None:
        if every_n_batches < 1 or validation_batches < 1:
            raise UserError(
                f"ShortcutCheck.every_n_batches is {every_n_batches} and validation_batches {validation_batches}: "
                "give at least 1."
            )
        self.every_n_batches = every_n_batches
        self.validation_batches = validation_batches
        self._classifiers: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._restored: dict[str, Any] = {}
        self._answers: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has no such features, before any training."""
        if not callable(getattr(pl_module, "shortcuts", None)):
            raise UserError(
                f"ShortcutCheck has nothing to check in {type(pl_module).__name__}: it is for VisionPretraining; take "
                "it out of trainer.callbacks."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Teach the classifiers one batch."""
        if batch_idx % self.every_n_batches:
            return
        module: Any = pl_module
        answers = module.shortcuts(batch, "train", trainer.global_step, batch_idx, trainer.global_rank)
        with torch.enable_grad():
            for name, shortcut in answers.items():
                classifier = self._classifier(name, shortcut)
                loss = nn.functional.cross_entropy(classifier.train()(shortcut.features.float()), shortcut.labels)
                loss.backward()
                self._optimizers[name].step()
                self._optimizers[name].zero_grad()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the answers of the last time."""
        self._answers = {}

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the classifiers' answers, with the draws of training but always the same ones."""
        place = batch_idx * trainer.world_size + trainer.global_rank
        if batch_idx * trainer.world_size >= self.validation_batches or trainer.sanity_checking:
            return
        counted = place < self.validation_batches and not batch.get(SURPLUS)
        module: Any = pl_module
        for name, shortcut in module.shortcuts(batch, "validation", place, 0).items():
            classifier = self._classifier(name, shortcut).eval()
            right = classifier(shortcut.features.float()).argmax(dim=-1) == shortcut.labels
            # Not by `bincount`, which waits for the device to learn how many classes there are.
            counts = nn.functional.one_hot(shortcut.labels, shortcut.classes).sum(dim=0)
            # Every process has an answer to put together with the others', even if nothing is in it.
            self._answers.setdefault(name, []).append((right.sum() * counted, counts * counted))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how often they were right, beside chance."""
        metrics = {}
        for name, answers in self._answers.items():
            right, counts = (torch.stack(answer).sum(dim=0) for answer in zip(*answers, strict=True))
            right, counts = trainer.strategy.reduce(right, reduce_op="sum"), trainer.strategy.reduce(counts, "sum")
            if int(counts.sum()):
                metrics[f"shortcuts/{name}/accuracy"] = float(right / counts.sum())
                metrics[f"shortcuts/{name}/chance"] = float(counts.max() / counts.sum())
        if metrics:
            log_figures(trainer, metrics)

    def _classifier(self, name: str, shortcut: Shortcut) -> nn.Module:
        """The classifier of a feature, made at its first batch, the same in every run."""
        if name not in self._classifiers:
            width, device = shortcut.features.shape[-1], shortcut.features.device
            # Lightning validates in inference mode, whose tensors could not be trained.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                layers = [
                    nn.BatchNorm1d(width, affine=False),
                    nn.Linear(width, HIDDEN_WIDTH),
                    nn.GELU(),
                    nn.Linear(HIDDEN_WIDTH, shortcut.classes),
                ]
                classifier = nn.Sequential(*layers).to(device)
            optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)
            if name in self._restored:
                weights, state = self._restored.pop(name)
                classifier.load_state_dict(weights)
                optimizer.load_state_dict(state)
            self._classifiers[name], self._optimizers[name] = classifier, optimizer
        return self._classifiers[name]

    def state_dict(self) -> dict[str, Any]:
        """The classifiers and what their optimisers remember."""
        return {
            name: [classifier.state_dict(), self._optimizers[name].state_dict()]
            for name, classifier in self._classifiers.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from the run that is resumed, once their features are known."""
        self._restored = dict(state_dict)
