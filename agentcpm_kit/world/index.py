"""Full-text search over pages with BM25 (bm25s), and the best sentence of each hit as its snippet."""

import re

import bm25s
import numpy as np

from .pages import Page


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class Index:
    """BM25 index over a list of texts."""

    def __init__(self, texts: list[str]):
        self.known = {w for text in texts for w in words(text)}
        self.engine = bm25s.BM25()
        self.engine.index([words(text) for text in texts], show_progress=False)

    def top(self, query: str, k: int) -> list[int]:
        """Positions of at most `k` texts that share a word with the query, best first; ties keep their order."""
        terms = [w for w in words(query) if w in self.known]
        if not terms:
            return []
        scores = self.engine.get_scores(terms)
        order = np.argsort(-scores, kind="stable")[:k]
        return [int(i) for i in order if scores[i] > 0]


def best_sentence(page: Page, query: str) -> str:
    """The sentence of the page that shares most words with the query, the first of equals."""
    wanted = set(words(query))
    return max(page.text.split("\n"), key=lambda line: len(wanted & set(words(line))))
