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
DRESS = re.compile(r"[*_`#>~\"“”«»「」『』\[\](){}【】\\$\u200b\ufeff]")
QUOTES = re.compile(r"(?<!\w)'|'(?!\w)")  # but not the apostrophe of "isn't"
ASIDE = re.compile(r"(?<=\w)[\s*_`]*[(（](?=\w)")  # "Incorrect (the year differs)" is read as "Incorrect, the year differs"
# A sentence ends with a stop; a line that has none ends one only where a blank line, or nothing, follows.
SENTENCE = re.compile(r"(?:[^.!?。！？\n]|\n(?!\s*\n))+[.!?。！？]?")
# A sentence gives a verdict if, beside the word itself, it has none but these: whatever else is said may turn its meaning.
NEUTRAL = set(re.findall(r"\S+", """
    the this that a an it its is are was so therefore thus hence overall finally final model model's student's given predicted
    submitted proposed extracted response answer prediction solution verdict judgement judgment grade result evaluation conclusion
    output label rating assessment decision exactly clearly entirely completely fully indeed i my would say"""))
NEGATIONS = {"not", "isn't", "wasn't", "aren't", "never"}
# A line of its own though it has no stop, after one that has; else it could be the end of a sentence, or what the answer said.
LABELLED = re.compile(r"(?:\A|(?<=[.!?])\n|\n\s*\n)\W*(?:(?:final|my|the)\s+)*"
                      r"(?:judge?ment|verdict|grade|result|conclusion|evaluation|decision|rating)"
                      r"\s*[:=]\s*(?:not\s+)?(?:in)?correct\W*(?=\n|\Z)")
SAME = re.compile(r"(?<!not )(?<!n't )\b(?:match(?:es)?|same|equivalent|equals?|agree|identical|correct)\b")
OTHER = re.compile(r"n't\b|\b(?:not|differ\w*|wrong|instead|should|expected|incorrect|answer is|another)\b")
ANSWER = re.compile(r"\b((?:is|was|isn't|wasn't)(?: not)? an? (?:in)?correct) (?:answer|response|prediction|solution)\W*$")
OPENING = re.compile(r"[,;]|\s[-–—]\s|\s(?:because|since|as)\s")  # of "Correct, since both name Paris."
# In the sentence of a "correct" these may turn it; elsewhere in the reply only what denies it outright.
DOUBT = re.compile(r"\b(?:no|not|never|wrong|false|incorrect|but|however|except|although|though|unless|if|only|wait|actually|"
                   r"would|partly|partially|mostly|almost|hardly|barely|perhaps|maybe|doubt\w*|lack\w*|miss\w*|differ\w*|ignor\w*|cannot|"
                   r"while|whereas|yet|despite|assum\w*|provid\w*|probably|possibly|guess|instead|omit\w*|contradict\w*|apart|half|"
                   r"neither|nothing|fail\w*|rather|another|should|must|off)\b|n't\b|"
                   r"[错误不未否]")
DENIAL = re.compile(r"\b(?:incorrect|wrong|however|but|wait|actually|almost|hardly|doubt|differs?|lacks|contradicts)\b|"
                    r"不正确|错误|不一致|"
                    r"(?:\bnot|n't)\s+(?:\w+\s+)?(?:correct|match|a\s+match|agree|equal|equivalent|the\s+same)")
# What takes an "incorrect" back.
RETURN = re.compile(r"\b(?:wait|actually|sorry)\b|(?<!not )(?<!n't )\bmatches\b|\b(?:is|was)\s+(?:right|correct)\b")
AFFIRMATION = re.compile(r"(?<!not )(?<!n't )\b(?:correct|right|yes|same|matches)\b|(?<!不)(?:正确|一致)")
LABEL = (r"(?:(?:(?:so|thus|hence|therefore|overall),?\s+)?(?:(?:the|my)\s+)?(?:final\s+)?(?:answer|verdict|grade|choice|option|"
         r"judge?ment|rating|答案|选项|判断|结论)\s*(?::|=|is|是|为)?\s*)?")
# After the letter: nothing, a stop with a space or Chinese behind it ("A.I." is none), or the word.
LETTER = re.compile(rf"{LABEL}([AB])(?=[\s.:,)!。]*$|\s*[:=]|[.,)。](?:\s|[\u3400-\u9fff])|\s+(?:[-–—]+\s+)?(?:in)?correct\W*$)"
                    r"[\s:.,)=–—。-]*(.*)$", re.I | re.S)
REVERSED = re.compile(r"((?:in)?correct)\s*[:,-]?\s*([AB])\W*", re.I)
CROSS = re.compile("[❌✗✘]")
CHOICE = re.compile(r"\b(?:choose|pick|say|be)\s+[AB]\b")
RETRACTED = re.compile(r"\b(?:sorry|i meant|wait|actually|correction)\b", re.I)
UNSURE = re.compile(r"\b(?:cannot|can't|unable|unclear|impossible)\b")
YES_NO = re.compile(r"^\W*correct\s*[:=]\s*(.*)$", re.I | re.M)
WORD = re.compile(r"(yes|no)(?:[^\w?]*$|(?:\s*[.,;:!。–—-]+\s+|,\s*|\s+(?=because\s))(.*)$)", re.I | re.S)
YES_NO_INSIDE = re.compile(r"(?<!not )\bcorrect\s*[:=]\s*'?(yes|no)\b'?\s*(?=$|\n|[.;,]?\s*confidence)", re.I)
CONCLUSION = re.compile(r"^[\W\d]*(?:最终|最后)?结论[ \t]*[:=]?[ \t]*(?:\n\s*)?(.*)$", re.M)  # here or on the next line
CONDITION = re.compile(r"如果|假如|若")
CONCLUSION_INSIDE = re.compile(r"(?<=[\s,。;、.])(?:最终|最后)?结论\s*[:=](.*)$", re.M)
SAID = re.compile(r"[\s:=是为]*(?:该|此)?(?:答案|回答)?(?:完全|是|为)?"
                  r"(并?不正确|并非正确|错误|正确)的?(?:$|[\s,。.;:!、-]+(.*)$)")
# What may follow the word: what bears it out, and nothing that turns it.
BEARS_RIGHT, BEARS_WRONG = re.compile(r"一致|相同|相符|匹配|等价|相等"), re.compile(r"不|未|正确答案|标准答案|应为|错")
TURNS_RIGHT = re.compile(r"[错误不未否非没但仅除若]|矛盾|相反|出入|相差|差异|部分|可能|大概|如果|前提|结论")
TURNS_WRONG = re.compile(r"(?<!不)(?:一致|相同|相符)|正确(?!的?(?:答案|结果|值|选项))|[没无]|更正|结论")


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
    return READERS[family](said.replace("\r\n", "\n").replace("\r", "\n"))


def _bare(text: str) -> str:
    """Without what only dresses a text; full-width marks and typographic apostrophes become plain ones."""
    text = TAGS.sub(" ", unicodedata.normalize("NFKC", text)).replace("’", "'").replace("‘", "'")
    return QUOTES.sub("", DRESS.sub("", text)).strip()


def _agreed(verdicts: Iterable[bool | None]) -> bool | None:
    """The verdict of all statements that give one; None where there is none, or two."""
    return _agreed_all(verdict for verdict in verdicts if verdict is not None)


def _agreed_all(verdicts: Iterable[bool | None]) -> bool | None:
    """The one verdict of statements each of which must give it."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else None


def _equivalence(reply: str) -> bool | None:
    first, _, rest = _bare(ASIDE.sub(", ", reply)).lower().partition("\n")  # a first line that is a verdict needs no stop
    sentences = [first, *_sentences(rest)] if _statement(first) is not None else _sentences(f"{first}\n{rest}")
    found = {s: _sentence(s) for s in sentences if not s.rstrip().endswith("?")}
    verdict = _agreed(found.values())
    others = [sentence.strip(" \n.!,") for sentence, said in found.items() if said is None]
    turned = {"no", "not", "nope"} if verdict else {"yes"}
    turns = DENIAL if verdict else RETURN
    return None if turns.search(" ".join(others)) or turned & set(others) or verdict and CROSS.search(reply) else verdict


def _sentences(text: str) -> list[str]:
    found, position = [], 0
    for line in LABELLED.finditer(text):
        found += [*SENTENCE.findall(text[position: line.start()]), line[0]]
        position = line.end()
    return found + SENTENCE.findall(text[position:])


def _sentence(sentence: str) -> bool | None:
    """The verdict of a sentence, or of its opening; "correct" only where nothing in the sentence can turn it."""
    if opening := re.match(r"\s*(yes|no),\s+(.*)", sentence, re.S):  # "No, the answer is not correct."
        verdict = _sentence(opening[2])
        return verdict if verdict == (opening[1] == "yes") else None
    verdict = _statement(sentence)
    if verdict is None:
        verdict, rest = _statement(OPENING.split(sentence)[0]), "".join(OPENING.split(sentence, maxsplit=1)[1:])
        return None if (DOUBT if verdict else RETURN).search(rest) else verdict
    return verdict


def _statement(clause: str) -> bool | None:
    """What "the answer is not correct" and the like say."""
    *words, last = re.findall(r"[\w']+", ANSWER.sub(r"\1", clause)) or [""]
    denials = sum(word in NEGATIONS for word in words)
    open_label = clause.rstrip().endswith((":", "="))  # "Correct:", and then nothing
    if open_label or last not in ("correct", "incorrect") or set(words) - NEUTRAL - NEGATIONS or denials > 1:
        return None
    if denials:
        return False if last == "correct" else None  # "not incorrect" is no clear word
    return last == "correct"


def _letter(reply: str) -> bool | None:
    """The letter that paragraphs begin with, if it is one; what follows must not contradict it."""
    paragraphs = re.split(r"\n\s*\n|(?<=[.!?。！？:])\s*\n", _bare(ASIDE.sub(", ", reply)))
    given = {p: _letter_of(p) for p in map(str.strip, paragraphs) if LETTER.match(p.partition("\n")[0]) or REVERSED.fullmatch(p)}
    others = "\n\n".join(p for p in paragraphs if p.strip() not in given)
    verdict = _agreed_all(given.values()) if given and not (RETRACTED.search(others) or CHOICE.search(others)) else None
    said = _equivalence(others)
    return verdict if said is None or said == verdict else None


def _letter_of(paragraph: str) -> bool | None:
    if word := REVERSED.fullmatch(paragraph):  # "INCORRECT: B"
        verdict = word[2].upper() == "A"
        return verdict if verdict == (word[1].lower() == "correct") else None
    line, _, rest = paragraph.partition("\n")
    letter, tail = LETTER.match(line).groups()
    said, verdict = f"{tail} {rest}".lower(), letter.upper() == "A"
    named = _statement(said.strip(" .!"))
    if named is not None:
        return verdict if named == verdict else None
    if UNSURE.search(said) or re.search(r"\b[ab]\b", re.sub(r"\ba (?=\w)", "", said)):  # another letter, and no article
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
    text = _bare(ASIDE.sub(", ", reply))
    if lines := list(YES_NO.finditer(text)):
        return None if RETRACTED.search(text, lines[-1].end()) else _agreed_all(_word(line[1]) for line in lines)
    return _agreed(_word(said) for said in YES_NO_INSIDE.findall(text))


def _word(said: str) -> bool | None:
    """"yes" or "no", and after a stop nothing but an explanation that bears it out."""
    found = WORD.match(re.sub(r"[\s.,;]*\bconfidence\b.*", "", said.strip(" '"), flags=re.I | re.S))
    if not found:
        return None
    right, tail = found[1].lower() == "yes", (found[2] or "").lower()
    other = re.sub(r"\b(?:correct|right) (?:answer|value|one)\b", "", tail)
    bears = SAME.search(tail) and not DOUBT.search(tail) if right else OTHER.search(tail) and not SAME.search(other)
    return right if not tail or bears else None


def _conclusion(reply: str) -> bool | None:
    """What stands behind 结论, at the beginning of a line or, where no line has it there, inside one."""
    text = _bare(ASIDE.sub(", ", reply))
    if found := CONCLUSION.findall(text):
        return None if "更正" in text else _agreed_all(map(_said, found))
    return None if CONDITION.search(text) else _agreed_all(map(_said, CONCLUSION_INSIDE.findall(text)))


def _said(text: str) -> bool | None:
    found = SAID.match(text)
    if not found:
        return None
    right, tail = found[1] == "正确", found[2] or ""
    bears, turns = (BEARS_RIGHT, TURNS_RIGHT) if right else (BEARS_WRONG, TURNS_WRONG)
    return right if not tail.strip(" ,。.;:!、") or bears.search(tail) and not turns.search(tail) else None


READERS = {"equivalence": _equivalence, "browsecomp_ab": _letter, "hle": _yes_no, "xbench": _conclusion}
