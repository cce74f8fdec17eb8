"""Retrieval: at which rank does a query find a right answer, and how often is that among the first 1, 5 or 10?

Exact, over all answers, in chunks of queries. Of several right answers (five captions of a picture) the best counts, as
is usual on COCO and Flickr30k (Karpathy and Fei-Fei 2015, arXiv:1412.2306). A wrong answer that is exactly as like as
the right one counts as before it: an encoder that says the same of everything, or NaN, finds nothing.
"""

import numpy
import torch
from torch import Tensor

CUTS = (1, 5, 10)
# Similarities that are held at a time.
SCORES_AT_ONCE = 2**24


def retrieval_ranks(queries: Tensor, answers: Tensor, right: Tensor) -> Tensor:
    """The rank of each query's best right answer.

    Args:
        queries: (Q, E) embeddings of length 1.
        answers: (A, E) embeddings of length 1.
        right: (P, 2) integers, pairs of a query and a right answer, at least one for each query.

    Returns:
        (Q,) ranks from 1.
    """
    ranks = torch.empty(len(queries), dtype=torch.long, device=queries.device)
    right = right[right[:, 0].argsort()]
    at_once = max(1, SCORES_AT_ONCE // max(1, len(answers)))
    for start in range(0, len(queries), at_once):
        scores = queries[start : start + at_once] @ answers.T
        stop = start + len(scores)
        first, last = torch.searchsorted(right[:, 0].contiguous(), right.new_tensor([start, stop])).tolist()
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        is_right[right[first:last, 0] - start, right[first:last, 1]] = True
        best = scores.masked_fill(~is_right, float("-inf")).amax(dim=1, keepdim=True)
        # Not a number is less than nothing, so that it counts as before the right answer too.
        ranks[start:stop] = 1 + (~(scores < best) & ~is_right).sum(dim=1)
    return ranks


def retrieval_figures(ranks: Tensor) -> dict[str, float]:
    """R@1, R@5, R@10 (shares) and the median of ranks (Q,)."""
    figures = {f"recall_at_{cut}": float((ranks <= cut).double().mean()) for cut in CUTS}
    return figures | {"median_rank": float(numpy.median(ranks.cpu().numpy()))}


def retrieval_both_ways(texts: Tensor, pictures: Tensor, text_pictures: Tensor, text_keys: Tensor) -> dict[str, float]:
    """How well captions find their pictures and pictures their captions.

    A caption that several pictures bear is right for each of them, and is one answer among all, not several.

    Args:
        texts: (T, E) embeddings of length 1, the captions of all pictures.
        pictures: (P, E) embeddings of length 1.
        text_pictures: (T,) picture of each caption, from 0; each picture has one at least.
        text_keys: (T,) integers, equal for equal captions.

    Returns:
        "text_to_picture/recall_at_1", ..., where every caption is asked; "picture_to_text/..."; and "mean_recall", the
        mean of the six recalls, by which models are chosen (Faghri et al. 2018, arXiv:1707.05612, take their sum).
    """
    firsts, words = distinct(text_keys)
    borne = torch.stack([words, text_pictures], dim=1).unique(dim=0)
    by_text = retrieval_ranks(texts[firsts], pictures, borne)[words]
    by_picture = retrieval_ranks(pictures, texts[firsts], borne.flip(1))
    figures_by_way = {"text_to_picture": retrieval_figures(by_text), "picture_to_text": retrieval_figures(by_picture)}
    recalls = [figures[f"recall_at_{cut}"] for figures in figures_by_way.values() for cut in CUTS]
    flat_figures = {
        f"{way}/{name}": value for way, figures in figures_by_way.items() for name, value in figures.items()
    }
    return flat_figures | {"mean_recall": sum(recalls) / len(recalls)}


def chance_of_retrieval(text_pictures: Tensor, text_keys: Tensor) -> dict[str, float]:
    """What `retrieval_both_ways` expects of embeddings that know nothing: any order of the answers is as likely.

    Args:
        text_pictures: (T,) picture of each caption, from 0; each picture has one at least.
        text_keys: (T,) integers, equal for equal captions.
    """
    firsts, words = distinct(text_keys)
    borne = torch.stack([words, text_pictures], dim=1).unique(dim=0)
    texts, pictures = len(firsts), int(text_pictures.max()) + 1
    by_text, by_picture = (
        chance_of_ranks(borne[:, column].bincount(minlength=queries)[asked], answers)
        for column, queries, answers, asked in ((0, texts, pictures, words), (1, pictures, texts, slice(None)))
    )
    recalls = [figures[f"recall_at_{cut}"] for figures in (by_text, by_picture) for cut in CUTS]
    ways = {"text_to_picture": by_text, "picture_to_text": by_picture}
    flat_figures = {f"{way}/{name}": value for way, figures in ways.items() for name, value in figures.items()}
    return flat_figures | {"mean_recall": sum(recalls) / len(recalls)}


def chance_of_ranks(right: Tensor, answers: int) -> dict[str, float]:
    """As `retrieval_figures`, of the first right answer's rank where all orders of the answers are as likely.

    Args:
        right: (Q,) how many of the answers are right for each query, at least 1.
        answers: How many there are.
    """
    places = numpy.arange(answers)
    # Share of the queries that have found nothing among the first 1, 2, ... answers.
    missed = numpy.zeros(answers)
    for count, queries in zip(*(part.tolist() for part in right.unique(return_counts=True)), strict=True):
        missed += (
            queries / len(right) * numpy.cumprod(numpy.clip(answers - count - places, 0, None) / (answers - places))
        )
    figures = {f"recall_at_{cut}": float(1.0 - missed[min(cut, answers) - 1]) for cut in CUTS}
    # Where just half of them have found one, the median lies between two ranks.
    ranks = [1 + int((missed > bound).sum()) for bound in (0.5 + 1e-9, 0.5 - 1e-9)]
    return figures | {"median_rank": sum(ranks) / 2}


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(U,) where each value of keys (T,) stands first, and (T,) which of them each is."""
    values, inverse = keys.unique(return_inverse=True)
    firsts = torch.full((len(values),), len(keys), device=keys.device)
    return firsts.scatter_reduce(0, inverse, torch.arange(len(keys), device=keys.device), "amin"), inverse
