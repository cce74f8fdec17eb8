"""Pretraining on text: any mix of masked, causal, next-sentence and replaced-token objectives on one encoder."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_pretrain.backbone import TextEncoder
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.new_pieces import is_larger, replaced_pieces
from lit_pretrain.data.text.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules.objective_heads import VocabularyGrowth
from lit_pretrain.modules.objective_mix import build_on_texts, check_on_texts, cost_on_texts
from lit_pretrain.modules.pretraining import Pretraining
from lit_pretrain.modules.short_sequences import ShortSequencesConfig, cut
from lit_pretrain.modules.steps import training_share
from lit_pretrain.modules.teachers import give_teachers
from lit_pretrain.objectives.objective import Batch, Objective, clean_inputs
from lit_pretrain.objectives.outputs import check_examples
from lit_pretrain.required import required
from lit_pretrain.trainer_state import data_module_of

InitialEmbeddings = Literal["random", "co_occurrence"]


class TextPretraining(Pretraining):
    """BERT, ELECTRA or GPT-style pretraining, by the objectives it is given.

    Args:
        encoder: The text encoder, whose vocabulary may wait for the tokenizer; null with `init_from`.
        objectives: Pretext tasks; their losses are added with their weights.
        short_sequences: Whether sequences are cut into shorter ones in the first part of the training.
        initial_embeddings: Of word pieces: `random`, or `co_occurrence`, by which pieces stand beside each other in the
            training documents (`lit_pretrain.data.text.co_occurrence`), which takes seconds and saves steps.
        **settings: `init_from`, `pretrained`, `pooling`, `dropout`, `attention_dropout`, `stochastic_depth`, `freeze`,
            `layer_decay`, `head_factor`, `architecture` and `grow`; see `Pretraining`. `optimizer`, `schedule`,
            `gradient_clip_norm`, `compile_blocks`, `seed`, `gradient_checkpointing`, `average` and
            `non_finite`; see `BaseModule`.
    """

    encoder: TextEncoder
    encoder_class = TextEncoder
    counted_fields = ("input_ids", "attention_mask")

    def __init__(
        self,
        encoder: TextEncoder | None = None,
        objectives: Sequence[Objective] = (),
        short_sequences: ShortSequencesConfig = ShortSequencesConfig(),  # noqa: B008 (frozen)
        initial_embeddings: InitialEmbeddings = "random",
        **settings: Any,
    ) -> None:
        super().__init__(encoder, objectives, **settings)
        self.short_sequences = short_sequences
        self.initial_embeddings = initial_embeddings
        if initial_embeddings != "random" and self.has_pretrained_embeddings:
            raise UserError(
                f"model.initial_embeddings {initial_embeddings} is for new weights, and those of model.init_from have "
                "learned embeddings: leave one of the two out, or set model.pretrained to false."
            )
        self.tokenizer: TextTokenizer | None = self.start.tokenizer

    @property
    def has_pretrained_embeddings(self) -> bool:
        """Whether word pieces have embeddings that were learned before, here or by whom this starts from."""
        return self.lineage.get("init_from", "scratch") != "scratch"

    def check_data(self, data: Any) -> None:
        """Refuse a data module whose settings do not serve the objectives; it asks before it reads anything.

        Raises:
            UserError: If sequences are longer than the position table, or objectives need other batches.
        """
        check_on_texts(self.objectives, self.encoder, data)
        self.short_sequences.check(self.objectives, data)
        # A training that goes on has grown.
        if getattr(data, "new_pieces", 0) and data.resumed_tokenizer is None and not self.built:
            self.encoder.embeddings.check_growing()

    def check_tokenizer_of_data(self, tokenizer: TextTokenizer | None) -> None:
        """Refuse a tokenizer that weights or objectives cannot have; the data asks before it tokenises anything.

        Args:
            tokenizer: The data's, before new pieces are added; null where one is about to be trained.

        Raises:
            UserError: In one sentence.
        """
        if self.built:
            return
        if tokenizer is not None:
            give_teachers(self.objectives)
            for objective in self.objectives:
                objective.check_vocabulary(tokenizer)
            if self.encoder.vocabulary_size is not None:
                self.encoder.set_vocabulary(tokenizer.vocabulary_size)
        elif self.encoder.vocabulary_size is not None and self.lineage.get("init_from", "scratch") != "scratch":
            raise UserError(
                f"{self.lineage['init_from']} brings no tokenizer, and the pieces of one that is trained here would "
                "have the embeddings of other ones: set data.tokenizer to that of the weights."
            )

    def build(self) -> None:
        """Take the tokenizer's vocabulary, check that the data serves the objectives, and make the heads.

        Raises:
            UserError: If tokenizer and encoder, sequence length and position table, or data and objectives do not fit.
        """
        data = data_module_of(self._trainer) if self._trainer is not None else None
        self.grow_vocabulary(data)
        if self.tokenizer is None and data is not None:
            self.tokenizer = data.tokenizer
        if self.tokenizer is None:
            raise UserError("TextPretraining has no tokenizer: train with a data module, or set module.tokenizer.")
        self.encoder.set_vocabulary(self.tokenizer.vocabulary_size)
        # A checkpoint that is loaded without data brings its own.
        if self.encoder.lacks_ngrams and data is not None:
            required(self.encoder.embeddings.ngrams).set_keys(
                data.frequent_ngrams(self.encoder.ngrams, self.encoder.ngram_rows)
            )
        if self.initial_embeddings == "co_occurrence" and self._trainer is not None and self._trainer.training:
            self.take_piece_vectors(data)
        build_on_texts(self.objectives, self.encoder, self.tokenizer, data)

    def take_piece_vectors(self, data: Any) -> None:
        """Begin with the data's vectors of word pieces.

        Raises:
            UserError: If the data has none.
        """
        if not hasattr(data, "piece_vectors"):
            raise UserError(
                "model.initial_embeddings co_occurrence needs the word pieces of a corpus, which "
                f"{type(data).__name__} does not count: take DocumentDataModule, or leave it out."
            )
        weight = required(self.encoder.embeddings.token).weight
        if weight.is_meta:
            return
        with torch.no_grad():
            vectors = data.piece_vectors(self.encoder.width)
            weight[: len(vectors)] = vectors.to(weight)

    def grow_vocabulary(self, data: Any) -> None:
        """Take the data's tokenizer where it has grown from the weights' own, and give the new pieces embeddings.

        Args:
            data: Data module; null for none.
        """
        larger, smaller = getattr(data, "tokenizer", None), self.tokenizer
        if smaller is None and self.encoder.vocabulary_size is not None:
            # Of weights without one, the tokenizer that the config names.
            smaller = getattr(data, "smaller_tokenizer", None)
        if not (isinstance(larger, WordPieceTokenizer) and isinstance(smaller, WordPieceTokenizer)):
            return
        if not is_larger(larger, smaller):
            return
        replaced = replaced_pieces(larger, smaller)
        self.vocabulary_growth = VocabularyGrowth(
            required(self.encoder.vocabulary_size), smaller.vocabulary_size, replaced
        )
        self.encoder.grow_vocabulary(self.vocabulary_growth.first, replaced)
        self.tokenizer = larger
        if self.lineage:
            self.lineage |= {"new_pieces": str(len(replaced)), "tokenizer_from": smaller.hash}

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """As the base's, and cut sequences as `short_sequences` says."""
        super().on_train_batch_start(batch, batch_index)
        short = self.short_sequences
        if short.parts > 1 and training_share(self.trainer) < short.until:
            # In place, so that whoever is handed the batch as it ends sees what was trained on.
            batch.update(cut(batch, short.parts, self.tokenizer))

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Pooled features of the clean texts: `sample_id` (B,) and `embedding` (B, D), float32."""
        inputs = clean_inputs(batch)
        tokens = self.encoder.forward_features(**inputs)
        embedding = self.encoder.forward_head(tokens, inputs.get("attention_mask"))
        return {"sample_id": batch["sample_id"], "embedding": embedding.float()}

    def step_cost(self, batch: Batch) -> dict[str, float]:
        """Samples, tokens and floating-point operations of one training batch; see `cost_on_texts`."""
        return cost_on_texts(self.objectives, self.encoder, batch)

    @torch.no_grad()
    def examples(self, count: int = 8) -> dict[str, list[dict[str, str]]]:
        """Rows to look at for each objective, from the first validation batch; empty before any validation."""
        if self._example_batch is None:
            return {}
        training = self.training
        self.eval()
        rows = {}
        for objective in self.objectives:
            generator = self.generator_for("examples")
            found = objective.examples(self.encoder, self._example_batch, self.tokenizer, generator, count)
            check_examples(objective, found, of_words=True)
            if found:
                rows[objective.name] = found
        self.train(training)
        return rows

    def describe(self) -> dict[str, str | int | float]:
        """What this is made of, for the record of the run."""
        description = super().describe() | {"positions": self.encoder.positions, "pooling": self.encoder.pooling}
        if self.tokenizer is not None:
            description |= {"vocabulary_size": self.tokenizer.vocabulary_size, "tokenizer_hash": self.tokenizer.hash}
        return description

    def checkpoint_record(self) -> dict[str, Any]:
        """As the base's, with the length of the data's sequences."""
        record = super().checkpoint_record()
        if "data_fingerprint" in record:
            # What `predict` reads other data by.
            record["inputs"] = {"maximum_length": getattr(data_module_of(self.trainer), "sequence_length", None)}
        return record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another shape, and one trained with another tokenizer.

        Without a trainer the tokenizer is the checkpoint's own, so `load_from_checkpoint` needs no data.
        """
        saved = checkpoint.get("lit_pretrain", {})
        if self.tokenizer is None and self._trainer is None and "tokenizer" in saved:
            self.tokenizer = tokenizer_from_json(saved["tokenizer"])
            self.configure_model()
        if self.tokenizer is not None and saved.get("tokenizer_hash", self.tokenizer.hash) != self.tokenizer.hash:
            raise UserError(
                f"The checkpoint was trained with tokenizer {saved['tokenizer_hash']}, this data uses tokenizer "
                f"{self.tokenizer.hash}: set data.tokenizer to the directory that export writes of that checkpoint."
            )
        super().on_load_checkpoint(checkpoint)
