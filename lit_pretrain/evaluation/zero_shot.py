"""Zero-shot classification: a picture is of the class whose description is nearest to it (CLIP, arXiv:2103.00020, 3.1).

A class has a prompt for each template and each of its names. The prompts' embeddings are averaged and brought to length
1 again, as there (3.1.4), so that a class costs one product however many prompts it has.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError, nearest
from lit_pretrain.evaluation.labelled_data import BATCH_SIZE, Part
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.evaluation.progress_bar import with_bar
from lit_pretrain.yaml_files import read_yaml

ClassNames = dict[str, str | list[str]] | list[str | list[str]]
PLACE = "{}"
DEFAULT_TEMPLATES = ("a photo of a {}.",)
# Of fewer classes than six, the right one is nearly always among the first five.
TOP, FEWEST_FOR_TOP = 5, 6


@dataclass(frozen=True)
class Prompts:
    """What is said of the classes.

    Attributes:
        texts: (P) all prompts, those of the first class first.
        owners: (P,) class of each.
        names: Of each class.
        templates: What the names were put into.
    """

    texts: list[str]
    owners: Tensor
    names: list[list[str]]
    templates: list[str]


def make_prompts(
    classes: Sequence[str],
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    class_names: ClassNames | str | None = None,
) -> Prompts:
    """Put the classes' names into the templates.

    Args:
        classes: Names that the data has for its classes, by number.
        templates: Each with {} where the name goes; or a YAML file that lists them.
        class_names: A name or several for a class: a mapping from the data's names, where those that are left out keep
            theirs, or a list of all in the data's order; or a YAML file that holds one of these. Null takes the data's
            names, with spaces for underscores.

    Raises:
        UserError: If a file cannot be read, a template has no place for a name, or a class is not there or has no name.
    """
    templates = check_templates(templates)
    names = names_of_classes(classes, class_names)
    texts = [
        [template.replace(PLACE, name) for template in templates for name in class_names_of_one]
        for class_names_of_one in names
    ]
    owners = torch.tensor([number for number, class_texts in enumerate(texts) for _ in class_texts], dtype=torch.long)
    return Prompts([text for class_texts in texts for text in class_texts], owners, names, templates)


def check_templates(templates: Sequence[str] | str) -> list[str]:
    """The templates, read from a YAML file if one is named.

    Raises:
        UserError: If there is none, or one has not exactly one place for a name.
    """
    texts = read_yaml(templates, "file of templates") if isinstance(templates, str) else list(templates)
    if not isinstance(texts, list) or not texts or not all(isinstance(template, str) for template in texts):
        raise UserError(
            f"The templates are {in_words(texts)}: give a list of texts, each with {PLACE} for a class's name."
        )
    for template in texts:
        if template.count(PLACE) != 1:
            raise UserError(
                f"The template '{template}' has {template.count(PLACE)} places for a class's name: put {PLACE} once, "
                "as in 'a photo of a {}.'."
            )
    return texts


def names_of_classes(classes: Sequence[str], class_names: ClassNames | str | None) -> list[list[str]]:
    """A list of names for each class.

    Raises:
        UserError: If a class that is named is not there, a list is not as long as the classes, or a name is empty.
    """
    own = [[name.replace("_", " ")] for name in classes]
    content = read_yaml(class_names, "file of class names") if isinstance(class_names, str) else class_names
    if content is None:
        return own
    if isinstance(content, list):
        if len(content) != len(classes):
            raise UserError(
                f"The class names are a list of {len(content)}, and the data has {len(classes)} classes "
                f"({first_of(classes)}): give one for each, or a mapping from the data's names."
            )
        content = dict(zip(classes, content, strict=True))
    if not isinstance(content, dict):
        raise UserError(f"The class names are {in_words(content)}: give a mapping or a list.")
    # YAML reads 1 and no as what they look like; the data's names are texts.
    by_name = {str(name): value for name, value in content.items()}
    for name in by_name:
        if name not in classes:
            raise UserError(
                f"The class names name '{name}'{nearest(name, classes)}, which the data has not: its classes are "
                f"{first_of(classes)}."
            )
    names = [
        as_names(by_name[name], name) if name in by_name else own_names
        for name, own_names in zip(classes, own, strict=True)
    ]
    return names


def as_names(value: object, of: str) -> list[str]:
    """One name or several as a list."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str | int) and str(name).strip() for name in names):
        raise UserError(f"The class names give '{of}' {in_words(value)}: give a text, or a list of texts.")
    return [str(name) for name in names]


def first_of(classes: Sequence[str]) -> str:
    """The first classes, as an enumeration."""
    return ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")


def in_words(value: object) -> str:
    """A value that was not expected, not too long."""
    return "nothing" if value is None else f"'{str(value)[:80]}'"


def class_embeddings(texts: Tensor, prompts: Prompts) -> Tensor:
    """(C, E) of length 1: the mean of each class's prompts.

    Args:
        texts: (P, E) of length 1, of `prompts.texts`.
        prompts: Says whose they are.
    """
    sums = texts.new_zeros(len(prompts.names), texts.shape[1]).index_add_(0, prompts.owners.to(texts.device), texts)
    return functional.normalize(sums, dim=-1)


@dataclass(frozen=True)
class ZeroShotResult:
    """What was told of some pictures.

    Attributes:
        ranked: (N, min(C, 5)) the nearest classes of each, the nearest first.
        labels: (N,) their classes.
        classes: C.
    """

    ranked: Tensor
    labels: Tensor
    classes: int

    @property
    def correct(self) -> int:
        """Pictures whose nearest class is their own."""
        return int((self.ranked[:, 0] == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of these."""
        return self.correct / len(self.labels)

    @property
    def top5_accuracy(self) -> float | None:
        """Share whose class is among the five nearest; null of five classes and fewer."""
        if self.classes < FEWEST_FOR_TOP:
            return None
        return int((self.ranked == self.labels[:, None]).any(dim=1).sum()) / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, by Wilson's score."""
        from scipy.stats import binomtest

        bounds = binomtest(self.correct, len(self.labels)).proportion_ci(0.95, method="wilson")
        return float(bounds.low), float(bounds.high)

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the classes."""
        return 1 / self.classes

    @property
    def most_frequent(self) -> float:
        """Accuracy of always telling the class that occurs most."""
        return int(torch.bincount(self.labels).max()) / len(self.labels)


def measure_zero_shot(embedder: PairEmbedder, part: Part, prompts: Prompts) -> ZeroShotResult:
    """Name labelled pictures by the nearest class.

    Args:
        embedder: Both towers.
        part: The pictures.
        prompts: What is said of their classes.
    """
    classes = class_embeddings(embedder.embed_texts(embedder.encode(prompts.texts)), prompts)
    # Those of the pictures that are read, should another stand in the place of a damaged one.
    labels: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        for batch in with_bar(part.batches(), math.ceil(len(part) / BATCH_SIZE), "pictures"):
            labels.append(batch["label"])
            yield batch["images"]

    pictures = embedder.embed_pictures(images())
    return classify(pictures, classes, torch.cat(labels))


def classify(pictures: Tensor, classes: Tensor, labels: Tensor) -> ZeroShotResult:
    """Name pictures by the nearest class.

    Args:
        pictures: (N, E) of length 1.
        classes: (C, E) of length 1.
        labels: (N,) integers below C.
    """
    nearest_classes = (pictures @ classes.T).topk(min(TOP, len(classes)), dim=1).indices
    return ZeroShotResult(nearest_classes.cpu(), labels.long().cpu(), len(classes))
