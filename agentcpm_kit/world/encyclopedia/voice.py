"""How a language says things: the texts of english.yaml or chinese.yaml, and the forms of numbers and dates."""

import datetime
from functools import lru_cache
from pathlib import Path

import yaml

from .schema import Relation

FILES = {"en": "english.yaml", "zh": "chinese.yaml"}
MONTHS = ["January", "February", "March", "April", "May", "June",
          "July", "August", "September", "October", "November", "December"]


class Voice:
    """One language. `texts` is the file's content; the same keys hold in both languages (tested)."""

    def __init__(self, language: str):
        self.language = language
        self.texts = yaml.safe_load((Path(__file__).parent / FILES[language]).read_text(encoding="utf-8"))
        self.joint = "" if language == "zh" else " "  # between sentences

    def relation(self, relation: Relation) -> dict:
        return self.texts["relations"][relation.key]

    def noun(self, kind: str) -> str:
        return self.texts["types"][kind]["noun"]

    def value(self, relation: Relation, value: int) -> str:
        """A year, day, count or category as pages write it."""
        if relation.kind == "category":
            return self.texts["categories"][relation.object][value]
        if relation.kind == "date":
            return self.date(value)
        return f"{value:,}" if relation.kind == "count" and self.language == "en" else str(value)

    def date(self, day: int) -> str:
        date = datetime.date.fromordinal(day)
        if self.language == "zh":
            return f"{date.year}年{date.month}月{date.day}日"
        return f"{date.day} {MONTHS[date.month - 1]} {date.year}"

    def answer(self, relation: Relation, value: int) -> tuple[str, tuple[str, ...]]:
        """A value as the gold answer (no thousands separator: GAIA's rule reads commas as lists), and other forms."""
        if relation.kind == "date":
            date = datetime.date.fromordinal(value)
            return self.date(value), (date.isoformat(), f"{MONTHS[date.month - 1]} {date.day} {date.year}")
        return (str(value) if relation.kind in ("count", "year") else self.value(relation, value)), ()

    def sentence(self, relation: Relation, entity: int, subject: str, obj: str) -> str:
        """The sentence that states a fact, always the same for one entity."""
        forms = self.relation(relation)["sentences"]
        return capital(forms[(entity * 5 + len(relation.key)) % len(forms)].format(s=subject, o=obj))

    def row(self, relation: Relation, value: int) -> str:
        """The table row that states a fact."""
        return f"| {self.relation(relation)['label']} | {self.value(relation, value)} |"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@lru_cache
def voice(language: str) -> Voice:
    return Voice(language)
