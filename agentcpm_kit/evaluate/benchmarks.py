"""The paper's eight benchmarks: how each is published, and how the paper's harness judged it. Their text is nowhere here.

Whoever has a benchmark's file adds it (``agentcpm-kit data add``, see `benchmark_files`). It is kept as it was published,
encrypted where it was, in a folder that git ignores, and decrypted in memory when it is played.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle

from ..errors import unknown


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is published and judged.

    `rows` as published; `columns` maps our fields to the file's. A row whose `attachment` is not empty needs more than text.
    `judge` is the model of the paper's harness, `prompt` ours for the format of verdicts that it asked for.
    """

    title: str
    where: str
    rows: int
    columns: Mapping[str, str]
    judge: str = "gpt-4.1"
    prompt: str = "equivalence"
    scheme: str = ""
    attachment: str = ""
    access: str = "free to download"


GATED = "gated: log in at huggingface.co, accept the terms on the dataset's page, then `hf auth login`"


def columns(question: str, answer: str, **others: str) -> dict[str, str]:
    return {"Question": question, "Final answer": answer, **others}


# Addresses, rows and columns: the datasets' pages and the evaluation programs of their authors, as read in 2026-11; none was
# downloaded where this was written. Judges: the reference's evaluation (its specification, section 15).
BENCHMARKS = {
    "gaia": Benchmark("GAIA, validation", "gaia-benchmark/GAIA", 165,
                      columns("Question", "Final answer", task_id="task_id", Level="Level"), prompt="gaia",
                      attachment="file_name", access=GATED),
    "browsecomp": Benchmark("BrowseComp", "openaipublic.blob.core.windows.net/simple-evals/browse_comp_test_set.csv", 1266,
                            columns("problem", "answer", canary="canary"), prompt="browsecomp", scheme="browsecomp"),
    "browsecomp_zh": Benchmark("BrowseComp-ZH", "PALIN2018/BrowseComp-ZH", 289,
                               columns("Question", "Answer", canary="canary"), prompt="browsecomp_zh", scheme="browsecomp"),
    "hle": Benchmark("Humanity's Last Exam", "cais/hle", 2500, columns("question", "answer", task_id="id"),
                     "o3-mini-2025-01-31", "hle", attachment="image", access=GATED),
    "frames": Benchmark("FRAMES", "google/frames-benchmark", 824, columns("Prompt", "Answer")),
    "webwalker": Benchmark("WebWalkerQA", "callanwu/WebWalkerQA", 680, columns("question", "answer")),
    "seal0": Benchmark("SEAL-0", "vtllms/sealqa", 111, columns("question", "answer")),
    "xbench": Benchmark("xbench-DeepSearch, 2505", "xbench/DeepSearch", 100,
                        columns("prompt", "answer", task_id="id", canary="canary"), prompt="xbench", scheme="xbench"),
}
# One setting for all in the paper's harness (its specification, section 15).
PUBLISHED = {"runs": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16_384, "max_turns": 200}


# BrowseComp, BrowseComp-ZH and xbench are published encrypted, each row with a canary, so that they do not slip into training
# data. Both schemes are XOR with a key made from the canary: its SHA-256, or itself, repeated. Source: the programs that the
# benchmarks' authors publish (openai/simple-evals, xbench-ai/xbench-evals).
KEYS = {"browsecomp": lambda canary: hashlib.sha256(canary).digest(), "xbench": lambda canary: canary}


def decrypt(scheme: str, ciphertext: str, canary: str) -> str:
    """The text of a field that is published encrypted.

    `scheme` is ``browsecomp`` (also BrowseComp-ZH) or ``xbench``, `ciphertext` base64 text, `canary` the row's own.

    Raises:
        KitError: an unknown scheme.
        ValueError: no base64, an empty canary, or one that does not fit: what comes out is no UTF-8.
    """
    if scheme not in KEYS:
        raise unknown("scheme", scheme, KEYS)
    if not canary:
        raise ValueError("an empty canary is no key")
    try:
        data = base64.b64decode("".join(ciphertext.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the ciphertext is not base64 ({error})") from error
    try:
        return bytes(byte ^ of_key for byte, of_key in zip(data, cycle(KEYS[scheme](canary.encode())), strict=False)).decode()
    except UnicodeDecodeError as error:
        raise ValueError("the canary does not fit this ciphertext: what comes out is not text") from error
