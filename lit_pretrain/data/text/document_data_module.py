"""Documents for pretraining on text: any source, one tokenised cache, sentence pairs or segments, clean batches."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import datasets
import numpy
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lit_pretrain.data.columns import with_column
from lit_pretrain.data.loading import Key, ResumableDataLoader
from lit_pretrain.data.notices import is_first_process, say_once
from lit_pretrain.data.sources import TEXT_BUILDERS, Source, check_column, no_rows, open_source, source_name
from lit_pretrain.data.splits import budgeted_rows, split_rows
from lit_pretrain.data.stream_source import check_columns, check_unlimited, column_of
from lit_pretrain.data.streamable_data_module import StreamableDataModule
from lit_pretrain.data.summary import PartSummary, data_line
from lit_pretrain.data.text.base_tokenizer import WORD_LENGTH, TextTokenizer
from lit_pretrain.data.text.co_occurrence import piece_vectors_once
from lit_pretrain.data.text.document_buffers import DocumentBuffers
from lit_pretrain.data.text.document_dataset import SPECIAL, DocumentDataset, Layout
from lit_pretrain.data.text.frequent_ngrams import frequent_ngrams
from lit_pretrain.data.text.new_pieces import FORMAT as NEW_PIECES_FORMAT
from lit_pretrain.data.text.new_pieces import check_growing, grown_once, is_larger
from lit_pretrain.data.text.packing import PackedRows
from lit_pretrain.data.text.replay import MixedDataset, ReplayConfig, ReplayedDataset, settings_of_replay
from lit_pretrain.data.text.sentence_pairs import PairPlan, PairSettings, RandomNext, least_documents
from lit_pretrain.data.text.text_encoding import choose_tokenizer
from lit_pretrain.data.text.token_cache import TokenCache, cache_fingerprint, open_or_build, reopened
from lit_pretrain.data.text.tokenizers_by_kind import load_tokenizer
from lit_pretrain.data.text.trained_tokenizer import DocumentTexts, TrainedTokenizer, trained_once
from lit_pretrain.data.text.unknown_pieces import check_known, check_some, share_told
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError, check_length, check_number
from lit_pretrain.required import required

DocumentSeparator = Literal["file", "blank_line"]
# Documents that are looked into before all are tokenised.
SOME = 100


class DocumentDataModule(StreamableDataModule):
    """A corpus of documents as clean batches of word pieces.

    Args:
        path: Hub name, file, directory, or builder (parquet, csv, json, text) for `data_files`; null without
            `data_files` is the bundled sample, the State of the Union speeches.
        name: Configuration of a data set on the hub, or of a directory's README.md.
        data_files: Files or patterns.
        split: Split to read; validation documents are taken from it. A directory has the splits that its README.md or
            the names in it say (train-*.parquet, test.csv, train/ and val/); files named by themselves have none.
        text_column: Column that holds the text.
        document_separator: For text files: `file` (a document a file) or `blank_line`; null takes `file` for several
            files and `blank_line` for one.
        tokenizer: Directory or file of BERT's, RoBERTa's or ModernBERT's tokenizer; null takes that of the weights that
            are started from, or else trains one on the corpus.
        vocabulary_size: Word pieces of a trained tokenizer at most.
        lowercase: Whether a trained tokenizer drops case.
        language: Two-letter code for the rules that split sentences.
        sequence_length: Tokens of a sequence, special tokens included.
        layout: `sentence_pairs` (what next sentence and sentence order prediction need) or `segments` (contiguous
            text).
        random_next: How often the second text of a pair is a random one: `balanced` (half and half), `faithful` (as
            BERT's authors: 55 to 65 %) or `never` (it follows always, as sentence order prediction needs it).
        short_share: Share of pairs that aim at a shorter length.
        batch_size: Sequences of a batch of one device.
        document_budget: Only so many training documents, or such a share of them below 1, drawn with the seed; the
            tokenizer and the validation documents stay those of the whole. Null for all.
        max_documents: Only so many documents from the start of the source; null for all.
        strip_accents: Whether a trained tokenizer drops accents; null drops them with the case.
        word_length: Characters of the longest word that a trained tokenizer takes apart; longer ones (DNA, say) are
            unknown. A word takes time with the square of its length.
        new_pieces: Word pieces of the corpus that are added to the tokenizer of `model.init_from`, or to `tokenizer`:
            those that shorten the texts most. Their embeddings begin as the mean of the pieces that they replace.
        packing: Whether a sequence holds several texts, as many as it has room for, in the place of padding; none sees
            another. For segments, and objectives that predict words.
        replay: A general corpus that is mixed in, so that what was learned from such texts is not forgotten; both have
            a validation, and the own one's alone chooses checkpoints.
        **settings: `streaming` and `shuffle_buffer`, see `StreamableDataModule`; `workers`, `validation_share`,
            `cache_directory`, `seed`, `delimiter` and `encoding`, see `EpochDataModule`.
    """

    samples_name = "sequences"
    contents_name = "text"
    own_dataset: DocumentDataset
    train_dataset: DocumentDataset | MixedDataset
    validation_dataset: DocumentDataset | None

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        data_files: str | list[str] | None = None,
        split: str = "train",
        text_column: str = "text",
        document_separator: DocumentSeparator | None = None,
        tokenizer: str | None = None,
        vocabulary_size: int = 8192,
        lowercase: bool = True,
        language: str = "en",
        sequence_length: int = 128,
        layout: Layout = "sentence_pairs",
        random_next: RandomNext = "balanced",
        short_share: float = 0.1,
        batch_size: int = 32,
        document_budget: int | float | None = None,
        max_documents: int | None = None,
        strip_accents: bool | None = None,
        word_length: int = WORD_LENGTH,
        new_pieces: int = 0,
        packing: bool = False,
        replay: ReplayConfig = ReplayConfig(),  # noqa: B008 (frozen)
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        if sequence_length < 8:
            raise UserError(f"data.sequence_length is {sequence_length}: give at least 8 tokens.")
        for name, value, least in (
            ("vocabulary_size", vocabulary_size, 6),
            ("word_length", word_length, 1),
            ("max_documents", max_documents, 1),
            ("new_pieces", new_pieces, 0),
        ):
            check_number(f"data.{name}", value, least=least)
        check_length("data.document_budget", document_budget, above_zero=True)
        if not 0.0 <= short_share < 1.0:
            raise UserError(f"data.short_share is {short_share}: give a share from 0 to below 1.")
        if packing and layout != "segments":
            raise UserError(
                f"data.packing puts several texts into a sequence, and those of data.layout {layout} hold two already: "
                "set data.layout to segments, or leave packing out."
            )
        self.source = DocumentSource(
            path, name, data_files, split, text_column, document_separator, max_documents, **self.table_form
        )
        self.tokenizer_path = tokenizer
        self.vocabulary_size = vocabulary_size
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.word_length = word_length
        self.language = language
        self.sequence_length = sequence_length
        self.layout = layout
        self.pairs = PairSettings(sequence_length - 3, random_next, short_share)
        self.packing = packing
        self.document_budget = document_budget
        self.new_pieces = new_pieces
        self.tokenizer: TextTokenizer | None = None
        # What `tokenizer` has grown from, if it has.
        self.smaller_tokenizer: TextTokenizer | None = None
        # That of a checkpoint that goes on, whose new pieces are there already.
        self.resumed_tokenizer: TextTokenizer | None = None
        self.cache: TokenCache | None = None
        self.fingerprint = ""
        self.replay = replay
        # Whether this is the general corpus of another one.
        self.replayed = False
        # The general corpus, in sequences as these are.
        self.general: DocumentDataModule | None = None
        if replay.is_given:
            self.general = DocumentDataModule(
                **replay.source(),
                sequence_length=sequence_length,
                layout=layout,
                random_next=random_next,
                short_share=short_share,
                language=language,
                batch_size=batch_size,
                packing=packing,
                **settings | {"seed": self.seed},
            )
            self.general.replayed = True

    # -- preparing

    def prepare_data(self) -> None:
        """Read the source, train or load the tokenizer and build the cache, whatever is not there yet."""
        if self.cache is not None:
            return
        # Before anything slow: a model that these settings do not serve, a tokenizer that cannot be used.
        module = getattr(self.trainer, "lightning_module", None)
        if module is not None and hasattr(module, "check_data"):
            module.check_data(self)
        if self.streaming:
            self._prepare_stream()
            return
        larger = self._grown_before()
        tokenizer = self._given_tokenizer() if larger is None else larger
        if self.new_pieces and larger is None:
            check_growing(tokenizer)
        if module is not None and hasattr(module, "check_tokenizer_of_data"):
            module.check_tokenizer_of_data(tokenizer)
        data, source_fingerprint = open_documents(self.source, self.cache_directory / "huggingface")
        general = self._open_general(source_fingerprint)
        self._check_documents(data)
        if tokenizer is None:
            tokenizer = self._trained_tokenizer(data, source_fingerprint)
        elif self.new_pieces and larger is None:
            self.smaller_tokenizer = tokenizer
            tokenizer = self._larger_tokenizer(cast(WordPieceTokenizer, tokenizer), data, source_fingerprint)
        check_some(texts_all_over(data, self.source), tokenizer, source_name(self.source), self._tokenizer_advice)
        if self.general is not None and general is not None:
            with settings_of_replay():
                some = texts_all_over(general, self.general.source)
                check_some(some, tokenizer, source_name(self.general.source), self.general._tokenizer_advice)
        self.fingerprint = cache_fingerprint(source_fingerprint, tokenizer, self.language)
        directory = self.cache_directory / "documents" / self.fingerprint
        self.cache = open_or_build(data, self.source.text_column, tokenizer, directory, self.language)
        self.tokenizer, self.vocabulary_size = tokenizer, tokenizer.vocabulary_size
        facts, texts = self.cache.facts, DocumentTexts(data, self.source.text_column)
        name, advice = source_name(self.source), self._tokenizer_advice
        check_known(facts["unknown_pieces"], facts["tokens"], tokenizer, name, texts, advice)
        if self.general is not None:
            self._prepare_general(self.general)

    def _prepare_stream(self) -> None:
        """Open the stream and look at its first documents; the tokenizer must be there."""
        self.check_end()
        self.refuse_in_stream(
            ("document_budget", self.document_budget, "draws from all of them"),
            ("new_pieces", self.new_pieces or None, "are chosen by all of the corpus"),
            ("replay", self.replay.is_given, "mixes two corpora whose lengths it must know"),
        )
        check_unlimited(self.source.max_documents, "data.max_documents")
        tokenizer, module = self._given_tokenizer(), self._model
        if tokenizer is None:
            raise UserError(
                "data.streaming reads documents as they come, and a tokenizer would be trained on all of them: set "
                "data.tokenizer, or start from weights that bring one by model.init_from."
            )
        if module is not None and hasattr(module, "check_tokenizer_of_data"):
            module.check_tokenizer_of_data(tokenizer)
        name, column = source_name(self.source), self.source.text_column
        shape = self.language, self.sequence_length, self.layout, self.pairs, self.packing
        contents = DocumentBuffers(name, column, tokenizer, *shape)
        rows, first, held_out = self.open_head(self.source, contents.least)
        values = [column_of(row.values, column) for row in first]
        found = next((value for value in values if value is not None), None)
        check_columns(first[0].values, [column], name, "data.text_column", [found])
        texts = contents.texts(first)
        check_some(texts[:SOME], tokenizer, name, self._tokenizer_advice)
        self.cache = contents.corpus(first)
        if self.cache.documents < contents.least:
            raise UserError(
                f"{name} has {self.cache.documents} documents with a sentence in '{column}' among the first "
                f"{len(first)}, and {self.layout} need {contents.least}: raise data.shuffle_buffer, or give other "
                "texts."
            )
        facts = self.cache.facts
        check_known(facts["unknown_pieces"], facts["tokens"], tokenizer, name, texts, self._tokenizer_advice)
        self.tokenizer, self.vocabulary_size = tokenizer, tokenizer.vocabulary_size
        self.open_batches(rows, contents, held_out)
        self._held_out = contents.corpus(held_out) if held_out else None

    def _setup_stream(self) -> None:
        """What is known of the first documents, and the validation sequences."""
        contents = cast(DocumentBuffers, required(self.stream).contents)
        held_out = self._held_out
        enough = held_out is not None and held_out.documents >= contents.least
        self.own_dataset = contents.dataset(self._tokens, self.seed)
        self.train_dataset = self.own_dataset
        self.validation_dataset = contents.dataset(required(held_out), 0, fixed=True) if enough else None
        if is_first_process():
            documents = 0 if held_out is None else held_out.documents
            facts = self._tokens.facts
            say_once(
                f"{source_name(self.source)} is streamed: of its first {documents + facts['documents']:,} documents "
                f"{documents:,} are for validation; they have {facts['tokens']:,} word pieces, "
                f"{share_told(facts['unknown_pieces'], facts['tokens'])}."
            )

    @property
    def _tokenizer_advice(self) -> str:
        """What helps a corpus that the tokenizer has no pieces for, where no other one can be given."""
        if self.replayed:
            return "give general texts in the script of those that are trained on"
        if not self.tokenizer_path and getattr(self._model, "tokenizer", None) is not None:
            return "start from weights of texts in this script, or add its pieces by data.new_pieces"
        return ""

    def _check_documents(self, data: datasets.Dataset) -> None:
        """Pairs with random sentences need two documents."""
        if self.layout == "sentence_pairs" and len(data) < least_documents(self.pairs.random_next):
            raise UserError(
                f"{source_name(self.source)} is one document, and sentence pairs need a second one for random "
                "sentences: "
                "give several documents, or set data.layout to segments and leave out NextSentencePrediction."
            )

    def _open_general(self, own_fingerprint: str) -> datasets.Dataset | None:
        """The general corpus, which must serve and be another than the own one, before either is tokenised."""
        if self.general is None:
            return None
        with settings_of_replay():
            data, fingerprint = open_documents(self.general.source, self.cache_directory / "huggingface")
            self.general._check_documents(data)
        if fingerprint == own_fingerprint:
            raise UserError(
                "data.replay is the corpus that is trained on: give one of other texts, such as the weights were "
                "trained on before."
            )
        return data

    def _prepare_general(self, general: "DocumentDataModule") -> None:
        """Prepare the general corpus with the same tokenizer."""
        general.tokenizer = self.tokenizer
        with settings_of_replay():
            general.prepare_data()
        parts = [self.fingerprint, general.fingerprint, str(self.replay.share)]
        self.fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _given_tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that a path or the model brings; null where one is to be trained."""
        tokenizer: TextTokenizer | None = self.tokenizer
        if self.tokenizer_path:
            tokenizer = load_tokenizer(self.tokenizer_path)
        model_tokenizer = getattr(self._model, "tokenizer", None)
        if tokenizer is None and model_tokenizer is None:
            return None
        return choose_tokenizer(self.tokenizer_path, tokenizer, model_tokenizer)

    def _grown_before(self) -> TextTokenizer | None:
        """The tokenizer with new pieces of a training that goes on, or of a model that was built; else null."""
        if not self.new_pieces:
            return None
        larger = self.resumed_tokenizer or (self._model.tokenizer if getattr(self._model, "built", False) else None)
        if larger is not None and self.tokenizer_path:
            named = load_tokenizer(self.tokenizer_path)
            if not is_larger(larger, named):
                choose_tokenizer(self.tokenizer_path, named, larger)
        return larger

    @property
    def _model(self) -> Any:
        """The module that is trained on this, or null."""
        return getattr(self.trainer, "lightning_module", None)

    def _larger_tokenizer(
        self, tokenizer: WordPieceTokenizer, data: object, source_fingerprint: str
    ) -> WordPieceTokenizer:
        """A tokenizer with new pieces of this corpus, chosen once."""
        key = f"{NEW_PIECES_FORMAT}\n{source_fingerprint}\n{tokenizer.to_json()}\n{self.new_pieces}"
        directory = self.cache_directory / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:16]
        return grown_once(directory, tokenizer, DocumentTexts(data, self.source.text_column), self.new_pieces)

    def _trained_tokenizer(self, data: object, source_fingerprint: str) -> WordPieceTokenizer:
        """The tokenizer of this corpus and these settings, trained once."""
        settings = TrainedTokenizer(self.vocabulary_size, self.lowercase, self.strip_accents, self.word_length)
        key = f"{source_fingerprint}\n{settings}"
        directory = self.cache_directory / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:16]
        texts = DocumentTexts(data, self.source.text_column)
        return trained_once(directory, texts, settings)

    def setup(self, stage: str) -> None:
        """Split the documents and plan the first epoch."""
        self.prepare_data()
        if hasattr(self, "train_dataset"):
            return
        if self.streaming:
            self._setup_stream()
            return
        # A random second sentence comes from another document, so pairs need two on either side.
        least = least_documents(self.pairs.random_next) if self.layout == "sentence_pairs" else 1
        train, validation = split_rows(self._tokens.documents, self.validation_share, "documents", least)
        if self.document_budget is not None:
            train = budgeted_rows(train, self.document_budget, self.seed, "document_budget", "documents", least)
        self.own_dataset = self._dataset(train, self.seed, fixed=False)
        self.train_dataset = self.own_dataset
        # The validation sequences are the same in every run, whatever its seed.
        self.validation_dataset = self._dataset(validation, 0, fixed=True) if len(validation) else None
        if is_first_process():
            keys, facts = required(self._tokens.document_keys), self._tokens.facts
            parts = {"train": PartSummary(len(train), keys=keys[train])}
            if len(validation):
                parts["validation"] = PartSummary(len(validation), keys=keys[validation])
            summary = (
                f"{facts['documents']:,} documents of '{self.source.text_column}' with {facts['tokens']:,} word pieces"
            )
            summary += f", {share_told(facts['unknown_pieces'], facts['tokens'])}"
            say_once(data_line(source_name(self.source), summary, parts, "document"))
            if self.packing:
                self._say_packing()
        if self.general is not None:
            with settings_of_replay():
                self.general.setup(stage)
            self.train_dataset = MixedDataset(self.own_dataset, self.general.own_dataset, self.replay.share, self.seed)

    @property
    def _tokens(self) -> TokenCache:
        """The tokenised corpus, once prepared."""
        assert self.cache is not None
        return self.cache

    def _say_packing(self) -> None:
        """How full the rows are, and whether texts had to be cut."""
        rows = cast(PackedRows, self.own_dataset.plan(0))
        offsets = self._tokens.document_offsets()
        lengths = offsets[1:] - offsets[:-1] + SPECIAL
        longer = int((lengths > self.sequence_length).sum())
        cut = (
            f"; {longer:,} of {len(lengths):,} documents are longer than that and are cut into several texts, which do "
            f"not see each other: data.sequence_length {int(lengths.max()):,} keeps all of them whole"
            if longer
            else ""
        )
        say_once(
            f"{len(rows.pieces):,} texts packed into {len(rows):,} sequences of {self.sequence_length} tokens, "
            f"{100 * rows.filled:.1f}% of which are no padding{cut}."
        )

    def frequent_ngrams(self, longest: int, count: int) -> Tensor:
        """The corpus's most frequent n-grams as numbers; see `frequent_ngrams`."""
        if self.streaming:
            raise UserError(
                "model.encoder.ngrams are counted in all of a corpus, and data.streaming reads documents as they come: "
                "leave one of the two out, or start from weights that have them."
            )
        return frequent_ngrams(self._tokens, longest, count)

    def piece_vectors(self, width: int) -> Tensor:
        """(V, D) embeddings of word pieces by who stands beside whom in the training documents.

        Args:
            width: D, features of a vector.

        Raises:
            UserError: If documents are a stream, or the cache directory cannot be written.
        """
        if self.streaming:
            raise UserError(
                "model.initial_embeddings co_occurrence is counted in all of a corpus, and data.streaming reads "
                "documents as they come: leave one of the two out, or start from weights (model.init_from)."
            )
        vocabulary_size = required(self.tokenizer).vocabulary_size
        directory = self.cache_directory / "piece_vectors"
        return piece_vectors_once(directory, self._tokens, self.own_dataset.documents, vocabulary_size, width)

    def piece_shares(self) -> numpy.ndarray:
        """(V,) how often each word piece occurs in the corpus."""
        return self._tokens.piece_shares(required(self.tokenizer).vocabulary_size)

    @property
    def random_share(self) -> float:
        """Share of the sentence pairs of an epoch whose second passage is random."""
        if self.layout != "sentence_pairs" or self.pairs.random_next == "balanced":
            return 0.5
        return float(cast(PairPlan, self.own_dataset.plan(0)).is_random.mean())

    def _dataset(self, documents: numpy.ndarray, seed: int, fixed: bool) -> "DocumentDataset":
        return DocumentDataset(
            self._tokens,
            documents,
            required(self.tokenizer),
            self.sequence_length,
            self.layout,
            self.pairs,
            seed,
            fixed,
            self.packing,
        )

    # -- loaders

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What a batch holds."""
        fields = ("input_ids", "attention_mask", "token_type_ids", "sample_id", "padded")
        labelled = self.layout == "sentence_pairs" and self.pairs.random_next != "never"
        if self.packing:
            return (*fields, "documents")
        return (*fields, "next_sentence_label") if labelled else fields

    def val_dataloader(self) -> Any:
        """Every validation sequence once, in the same order always; the general corpus's after the own ones."""
        own = self._in_order(self.validation_dataset)
        if self.general is None or self.general.validation_dataset is None:
            return own
        replayed = self._in_order(ReplayedDataset(self.general.validation_dataset))
        return CombinedLoader({"own": own, "replay": replayed}, "sequential")

    def test_dataloader(self) -> Any:
        """The validation sequences: pretraining keeps no third part of a corpus."""
        return self.val_dataloader()

    def predict_dataloader(self) -> ResumableDataLoader:
        """The beginning of every document."""
        if self.streaming:
            raise UserError("predict answers every document of a source once: set data.streaming to false for it.")
        return self._in_order(DocumentStarts(self._tokens, required(self.tokenizer), self.sequence_length))

    # -- telling

    def describe(self) -> dict[str, str | int | float]:
        """What the data is, for the record of a run."""
        facts: dict[str, str | int | float] = dict(self._tokens.facts)
        facts |= {
            "source": source_name(self.source),
            "data_fingerprint": self.fingerprint,
            "tokenizer_hash": required(self.tokenizer).hash,
            "validation_sequences": len(self.validation_dataset) if self.validation_dataset is not None else 0,
        }
        if self.streaming:
            # Those that were looked at first; how many there are nobody knows.
            facts = {f"first_{name}" if isinstance(value, int) else name: value for name, value in facts.items()}
            facts |= {"streaming": "yes", "shuffle_buffer": self.shuffle_buffer}
        else:
            facts["training_sequences"] = len(self.train_dataset)
        if self.layout == "sentence_pairs":
            facts["random_share"] = round(float(cast(PairPlan, self.own_dataset.plan(0)).is_random.mean()), 4)
        if self.packing:
            facts["packed_share"] = round(cast(PackedRows, self.own_dataset.plan(0)).filled, 4)
        if self.general is not None:
            facts |= {f"replay_{name}": value for name, value in self.general.describe().items()}
        return facts


class DocumentStarts:
    """The beginning of every document, for embeddings: [CLS] A [SEP], `sample_id` being the source's row.

    Args:
        cache: The tokenised corpus.
        tokenizer: Whose special tokens stand around the text.
        sequence_length: L, tokens of a sequence.
    """

    def __init__(self, cache: TokenCache, tokenizer: TextTokenizer, sequence_length: int) -> None:
        everything = numpy.arange(cache.documents)
        self.inner = DocumentDataset(
            cache, everything, tokenizer, sequence_length, "segments", PairSettings(sequence_length), 0, fixed=True
        )
        self.cache = cache
        self.starts = cache.document_offsets()

    def __len__(self) -> int:
        """Number of documents."""
        return self.cache.documents

    def population(self, epoch: int) -> int:
        """Number of documents."""
        return len(self)

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A batch of documents' beginnings."""
        documents = numpy.array([index for _, index in keys])
        # Segments cut from the documents' starts are in order, so each document's first is found by its offset.
        starts = self.starts[documents]
        rows = numpy.searchsorted(cast(numpy.ndarray, self.inner.plan(0))[:, 0], starts)
        batch = self.inner.__getitems__([(0, int(row)) for row in rows])
        return batch | {"sample_id": torch.from_numpy(self.cache.document_rows[documents].copy())}


@dataclass(frozen=True)
class DocumentSource(Source):
    """Where documents come from; see `DocumentDataModule` for the fields."""

    text_column: str = "text"
    document_separator: DocumentSeparator | None = None
    max_documents: int | None = None

    builders: ClassVar[dict[str, str]] = TEXT_BUILDERS
    sample: ClassVar[str] = "sotu"
    needed: ClassVar[str] = "a corpus with at least one document"
    kinds: ClassVar[str] = ", ".join(sorted(TEXT_BUILDERS))

    def options(self, builder: str, files: list[str]) -> dict[str, str]:
        """Of text files, what a document is."""
        options = super().options(builder, files)
        if builder != "text":
            return options
        separator = self.document_separator or ("file" if len(files) > 1 else "blank_line")
        return options | {"sample_by": {"file": "document", "blank_line": "paragraph"}[separator]}


def open_documents(source: DocumentSource, cache_directory: Path) -> tuple[datasets.Dataset, str]:
    """Open a corpus.

    Args:
        source: What to read.
        cache_directory: Where local files are converted to.

    Returns:
        A data set with the text column, and a fingerprint that changes with its content and with nothing else.

    Raises:
        UserError: If a file, a split or a column is missing, the column is not text, or there is no row.
    """
    opened = open_source(source, cache_directory)
    data = with_column(opened, source.text_column)
    check_text_column(data, source)
    data = data.select_columns([source.text_column])
    if source.max_documents is not None:
        data = data.select(range(min(source.max_documents, len(data))))
    if len(data) == 0:
        raise no_rows(source)
    parts = [
        opened.fingerprint,
        source.split,
        source.text_column,
        str(source.document_separator),
        str(source.max_documents),
    ]
    return data, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def texts_all_over(data: datasets.Dataset, source: DocumentSource) -> list[str]:
    """Some texts of a corpus, at even distances."""
    count = min(SOME, len(data))
    # Mapped for these alone: the pages around each stay in the memory as long as the rows are mapped.
    rows = reopened(data).select([index * len(data) // count for index in range(count)])
    return [text or "" for text in rows[source.text_column]]


def check_text_column(data: datasets.Dataset, source: DocumentSource) -> None:
    """The text column must be there and hold text."""
    check_column(data, source.text_column, source_name(source), "data.text_column")
    feature = data.features[source.text_column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(
            f"The column '{source.text_column}' of {source_name(source)} holds {kind}, not text: set data.text_column."
        )
