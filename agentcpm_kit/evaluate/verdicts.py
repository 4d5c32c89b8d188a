"""Verdicts of an LLM judge, read without guessing.

A judge is asked for one of four reply formats (`READERS`). What was asked for is taken in the dress that models give it
(Markdown, quotes, tags, full-width marks, a plain sentence around it), and nothing else: a reply that says both, neither or
something else is None. It is asked again, then the answer stays unscored. The reference reads "Not correct" as correct.
"""

import json
import re
import unicodedata
from collections.abc import Iterable

from ..errors import unknown

TAGS = re.compile(r"</?\w+>|\\(?:boxed|text|textbf)\b|^```\w*$", re.M)
DRESS = re.compile(r"[*_`#>~\"“”«»「」『』\[\](){}【】\\$]")
# A sentence ends with a stop; a line that has none ends one only where a blank line, or nothing, follows.
SENTENCE = re.compile(r"(?:[^.!?。！？\n]|\n(?!\s*\n))+[.!?。！？]?")
# A sentence gives a verdict if, beside the word itself, it has none but these: whatever else is said may turn its meaning.
NEUTRAL = set(re.findall(r"\S+", """
    the this that a an it its is are was so therefore thus hence overall finally final model model's student's given predicted
    submitted proposed extracted response answer prediction solution verdict judgement judgment grade result evaluation conclusion
    output label rating assessment decision exactly clearly entirely completely fully indeed"""))
NEGATIONS = {"not", "isn't", "wasn't", "aren't", "never"}
OPENING = re.compile(r"[,;]|\s[-–—]\s|\s(?:because|since|as)\s")  # of "Correct, since both name Paris."
# In the sentence of a "correct" these may turn it; elsewhere in the reply only what denies it outright.
DOUBT = re.compile(r"\b(?:no|not|never|wrong|false|incorrect|but|however|except|although|though|unless|if|only|wait|actually|"
                   r"would|partly|partially|mostly|almost|hardly|barely|perhaps|maybe|doubt\w*|lack\w*|miss\w*|differ\w*|ignor\w*)\b|n't\b|"
                   r"[错误不未否]")
DENIAL = re.compile(r"\b(?:incorrect|wrong|however|but|wait|actually|almost|hardly|doubt|differs?|lacks|contradicts)\b|"
                    r"不正确|错误|不一致|"
                    r"\b(?:not|n't)\s+(?:\w+\s+)?(?:correct|match|agree|equal|the\s+same)|n't\s+(?:match|agree|equal)")
AFFIRMATION = re.compile(r"(?<!not )(?<!n't )\b(?:correct|right|yes|same|matches)\b|(?<!不)(?:正确|一致)")
LABEL = r"(?:(?:the\s+)?(?:final\s+)?(?:answer|verdict|grade|choice|option|答案|选项|判断|结论)\s*(?::|=|is|是|为)?\s*)?"
LETTER = re.compile(rf"{LABEL}([AB])(?:\s*$|\s*[:.,)=-]\s*(.*)$|\s+((?:in)?correct)\W*$)", re.I | re.S)
YES_NO = re.compile(r"^\W*correct\s*[:=]\s*(.*)$", re.I | re.M)
YES_NO_INSIDE = re.compile(r"(?<!not )\bcorrect\s*[:=]\s*'?(yes|no)\b'?\s*(?=$|\n|[.;,]?\s*confidence)", re.I)
CONCLUSION = re.compile(r"^[\W\d]*结论(.*)$", re.M)


def read_verdict(family: str, reply: str) -> bool | None:
    """Whether a judge's reply says that an answer is right; None where it says nothing usable.

    `family` is the format that the judge was asked for:

    - ``equivalence``: "Correct" or "Incorrect" (GAIA's too, with "exactly");
    - ``browsecomp_ab``: "A" for correct, "B" for incorrect;
    - ``hle``: ``correct: yes`` or ``correct: no``, as a line or in JSON;
    - ``xbench``: ``结论: 正确`` or ``结论: 错误``.

    Source: the formats are those of the reference's judges (its specification, section 15); the reading is ours.

    Raises:
        KitError: an unknown family.
    """
    if family not in READERS:
        raise unknown("family of verdicts", family, READERS)
    if not isinstance(reply, str) or "<think>" in (said := reply.rpartition("</think>")[2]):  # it was cut while it thought
        return None
    return READERS[family](said)


def _bare(text: str) -> str:
    """Without what only dresses a text; full-width marks and typographic apostrophes become plain ones."""
    return DRESS.sub("", TAGS.sub(" ", unicodedata.normalize("NFKC", text)).replace("’", "'")).strip()


def _agreed(verdicts: Iterable[bool | None]) -> bool | None:
    """The verdict of all statements that give one; None where there is none, or two."""
    return _agreed_all(verdict for verdict in verdicts if verdict is not None)


def _agreed_all(verdicts: Iterable[bool | None]) -> bool | None:
    """The one verdict of statements each of which must give it."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else None


def _equivalence(reply: str) -> bool | None:
    first, _, rest = _bare(reply).lower().partition("\n")  # a first line that is a verdict needs no stop
    sentences = SENTENCE.findall(first) + SENTENCE.findall(rest) if _statement(first) is not None else SENTENCE.findall(
        f"{first}\n{rest}")
    found = {s: _sentence(s) for s in sentences if not s.rstrip().endswith("?")}
    verdict = _agreed(found.values())
    others = " ".join(sentence for sentence, said in found.items() if said is None)
    return None if verdict and DENIAL.search(others) else verdict


def _sentence(sentence: str) -> bool | None:
    """The verdict of a sentence, or of its opening; "correct" only where nothing in the sentence can turn it."""
    verdict = _statement(sentence)
    if verdict is None:
        verdict, rest = _statement(OPENING.split(sentence)[0]), "".join(OPENING.split(sentence, maxsplit=1)[1:])
        return None if verdict and DOUBT.search(rest) else verdict
    return verdict


def _statement(clause: str) -> bool | None:
    """What "the answer is not correct" and the like say."""
    *words, last = re.findall(r"[\w']+", clause) or [""]
    denials = sum(word in NEGATIONS for word in words)
    open_label = clause.rstrip().endswith((":", "="))  # "Correct:", and then nothing
    if open_label or last not in ("correct", "incorrect") or set(words) - NEUTRAL - NEGATIONS or denials > 1:
        return None
    if denials:
        return False if last == "correct" else None  # "not incorrect" is no clear word
    return last == "correct"


def _letter(reply: str) -> bool | None:
    """The letter that paragraphs begin with, if it is one; what follows must not contradict it."""
    paragraphs = re.split(r"\n\s*\n|(?<=[.!?。！？:])\s*\n", _bare(reply))
    found = [_letter_of(paragraph.strip()) for paragraph in paragraphs if LETTER.match(paragraph.strip().partition("\n")[0])]
    return _agreed_all(found) if found else None


def _letter_of(paragraph: str) -> bool | None:
    line, _, rest = paragraph.partition("\n")
    letter, tail, word = LETTER.match(line).groups()
    said, verdict = f"{tail or ''} {word or ''} {rest}".lower(), letter.upper() == "A"
    named = _statement(said.strip(" .!"))
    if named is not None:
        return verdict if named == verdict else None
    if re.search(r"\b[ab]\b", re.sub(r"\ba (?=\w)", "", said)):  # another letter, and no article
        return None
    turned = DOUBT if verdict else AFFIRMATION
    return None if turned.search(said) else verdict


def _yes_no(reply: str) -> bool | None:
    found = re.search(r"^\{.*\}\s*\Z", TAGS.sub("", reply), re.S | re.M)  # an object at the end, after which nothing is said
    if found and not YES_NO.search(reply[: found.start()]):
        try:
            said = json.loads(found[0]).get("correct")
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, bool) else _word(str(said))
    lines = YES_NO.findall(_bare(reply))
    if lines:
        return _agreed_all(map(_word, lines))
    return _agreed(_word(said) for said in YES_NO_INSIDE.findall(_bare(reply)))


def _word(said: str) -> bool | None:
    return {"yes": True, "no": False}.get(said.strip(" .,;!'").lower())


def _conclusion(reply: str) -> bool | None:
    said = [re.sub(r"^[\s:是为]+|[\s。.!]+$", "", line) for line in CONCLUSION.findall(_bare(reply))]
    return _agreed_all({"正确": True, "错误": False, "不正确": False}.get(word) for word in said) if said else None


READERS = {"equivalence": _equivalence, "browsecomp_ab": _letter, "hle": _yes_no, "xbench": _conclusion}
