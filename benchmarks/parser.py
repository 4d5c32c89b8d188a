"""Reading what models write: no text may raise, and none may take long.

    python benchmarks/parser.py           # 100,000 texts, half a minute

A third of the texts each are random characters (lone surrogates and NULs among them), fragments of tags and JSON in any
order, and good messages with random damage: deleted, inserted, swapped, repeated or cut. Most have up to 4,000 characters,
one in five hundred 100,000 or more. Prints one line of JSON and exits with 1 if there was an exception. Times are CPU time,
so that a busy machine does not count against the parser.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from agentcpm_kit.agent.messages import extract_answer, parse_tool_calls
from agentcpm_kit.environment import describe
from agentcpm_kit.files import write_json

LONGEST, LONG, LONG_EVERY = 4000, 100_000, 500
RANGES = ((0, 128), (0x80, 0x3000), (0x4E00, 0x9FFF), (0xD800, 0xE000), (0x1F300, 0x1FAFF))  # the fourth: surrogates
FRAGMENTS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<code>", "</code>", "<tool_", "call>",
    '{"name": "', '"search"', '"arguments": {', '"query": ["', "{", "}", "[", "]", '"', "\\", "\\ud800", "\\u0000", ", ", ": ",
    "null", "NaN", "-Infinity", "1e999", "9" * 5000, "[" * 1500, '{"a":' * 300, "\n", "\0", " ", "é", "北京", "\ud83d")


def random_text(rng: random.Random, length: int) -> str:
    """Characters of one script or of all."""
    ranges = rng.choice([RANGES, *((each,) for each in RANGES)])
    characters = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(100)]
    return "".join(rng.choices(characters, k=length))


def fragments(rng: random.Random, length: int) -> str:
    """Fragments in any order, few of them so that they repeat; or up to ten, over and over."""
    if rng.random() < 0.2:
        unit = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 10)))
        return (unit * (length // len(unit) + 1))[:length]
    return "".join(rng.choices(rng.sample(FRAGMENTS, rng.randint(1, len(FRAGMENTS))), k=length // 4))[:length]


def good_message(rng: random.Random, length: int) -> str:
    """Thinking, then calls or an answer, as long as asked for."""
    words = random_text(rng, length // 4).replace("<", "")
    arguments = {"query": [words[:40], words], "n": rng.random(), "nested": {"a": [None, True, {"b": "</tool_call>"}]}}
    call = json.dumps({"name": rng.choice(["search", "fetch_url"]), "arguments": arguments}, ensure_ascii=rng.random() < 0.5)
    code = '{"name": "PythonInterpreter", "arguments": {}}\n<code>\nprint(1 + 1)\n</code>'
    calls = "".join(f"\n<tool_call>\n{rng.choice([call, code])}\n</tool_call>" for _ in range(rng.randint(0, 3)))
    return f"<think>\n{words}\n</think>\n\n{words[:100]}{calls or f'<answer>{words[:20]}</answer>'}"


def damage(rng: random.Random, text: str) -> str:
    """Up to five changes, each to a piece of up to 20 characters or to all that follows."""
    for _ in range(rng.randint(0, 5)):
        start = rng.randint(0, len(text))
        end = rng.choice([start + 1, start + rng.randint(0, 20), len(text)])
        before, piece, after = text[:start], text[start:end], text[end:]
        text = rng.choice([before + after, before + rng.choice(FRAGMENTS) + piece + after, before + after[:9] + piece + after[9:],
                           before + piece * 2 + after, before])
    return text


def make_text(rng: random.Random, number: int) -> str:
    length = LONG if number % LONG_EVERY == 0 else int(LONGEST * rng.random() ** 2)  # short ones are the many
    make = rng.choice([random_text, fragments, lambda *settings: damage(rng, good_message(*settings))])
    return make(rng, length)


def measure(texts: int, seed: int) -> dict:
    """Read so many texts; only the reading is timed, answer included."""
    rng, counts, times = random.Random(seed), Counter(), []
    for number in range(texts):
        text = make_text(rng, number)
        started = time.process_time()
        try:
            parsed = parse_tool_calls(text)
            extract_answer(parsed)
        except Exception as error:
            counts["exceptions"] += 1
            print(f"{type(error).__name__}: {error} in {text[:500]!a}", file=sys.stderr)
        else:
            counts.update(calls=len(parsed.tool_calls), errors=len(parsed.errors))
        times.append(time.process_time() - started)
        counts["characters"] += len(text)
        counts["longest"] = max(counts["longest"], len(text))
    return summary(counts, times)


def summary(counts: Counter, times: list[float]) -> dict:
    """`calls` and `errors` show that the texts reach all parts of the parser."""
    total, times = sum(times), sorted(times)
    return {"texts": len(times), "exceptions": counts["exceptions"], "calls": counts["calls"], "errors": counts["errors"],
            "characters": counts["characters"], "longest": counts["longest"],
            "median_ms": round(1000 * times[len(times) // 2], 4), "p99_ms": round(1000 * times[len(times) * 99 // 100], 3),
            "max_ms": round(1000 * times[-1], 3), "characters_per_s": round(counts["characters"] / total)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=100_000, help="how many texts to read")
    parser.add_argument("--seed", type=int, default=0, help="of the texts")
    parser.add_argument("--out", type=Path, help="file for the summary, with command and machine")
    options = parser.parse_args()
    if options.texts < 1:
        parser.error("--texts must be at least 1")
    result = measure(options.texts, options.seed)
    print(json.dumps(result))
    if options.out:
        write_json(options.out, result | {"command": " ".join(sys.argv), "env": describe(options.seed)})
    return 1 if result["exceptions"] else 0


if __name__ == "__main__":
    sys.exit(main())
