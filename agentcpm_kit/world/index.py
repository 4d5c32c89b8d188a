"""Full-text search over pages with BM25 (bm25s), and the best passage of each hit as its snippet.

Chinese is written without spaces: a run of Chinese characters is indexed by its characters and pairs of neighbours.
"""

import logging
import re
from array import array
from collections.abc import Iterable

import bm25s
import numpy as np

from .atlas import Page

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it remarks on every index
HAN = "\u3400-\u9fff"
WORD = re.compile(rf"[{HAN}]+|[^\W{HAN}]+")


def words(text: str) -> list[str]:
    text = text.lower()
    if text.isascii():
        return re.findall(r"\w+", text)
    return [word for run in WORD.findall(text) for word in (_pieces(run) if "\u3400" <= run[0] <= "\u9fff" else [run])]


def _pieces(run: str) -> list[str]:
    return [*run, *(run[i: i + 2] for i in range(len(run) - 1))]


class Index:
    """BM25 index over texts, which are read once and not kept."""

    def __init__(self, texts: Iterable[str]):
        self.known: dict[str, int] = {}
        # arrays, not lists: a tenth of the memory, which counts from 10^5 pages on
        ids = [array("i", [self.known.setdefault(w, len(self.known)) for w in words(text)]) for text in texts]
        self.engine = bm25s.BM25()
        self.engine.index((ids, self.known), show_progress=False, create_empty_token=False)

    def top(self, query: str, k: int) -> list[int]:
        """Positions of at most `k` texts that share a word with the query, best first; ties keep their order."""
        terms = [self.known[w] for w in words(query) if w in self.known]
        if not terms:
            return []
        scores = self.engine.get_scores_from_ids(terms)
        floor = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
        found = np.flatnonzero(scores >= max(floor, np.finfo(scores.dtype).tiny))
        return [int(i) for i in found[np.argsort(-scores[found], kind="stable")][:k]]


PASSAGE = re.compile(r"\n|(?<=\.) |(?<=。)")


def best_passage(page: Page, query: str) -> str:
    """The sentence or line of the page that shares most words with the query, the first of equals."""
    wanted = set(words(query))
    return max(PASSAGE.split(page.text), key=lambda passage: len(wanted & set(words(passage))))
