"""An LLM judge: any OpenAI-compatible model that compares an answer with the reference answer. `verdicts` reads its replies.

Prompts are text files in ``prompts/``, in our words. A judge that is out is a fault and no verdict; the reference counts its
silence as a wrong answer.
"""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from ..agent.engines.base import EngineFault
from ..agent.engines.openai import ROUTES
from ..agent.engines.servers import Servers, base_url, without_password
from ..errors import one_line, unknown
from ..files import append_jsonl, read_jsonl
from .accounts import cost
from .verdicts import read_verdict

PROMPTS = Path(__file__).parent / "prompts"
# Judge prompt -> the format of the verdicts that it asks for, and what an unreadable reply is answered with.
FORMATS = {"equivalence": ("equivalence", "Reply with one word: Correct or Incorrect."),
           "gaia": ("equivalence", "Reply with one word: Correct or Incorrect."),
           "browsecomp": ("browsecomp_ab", "Reply with the letter alone: A or B."),
           "browsecomp_zh": ("browsecomp_ab", "只回复一个字母：A 或 B。"),
           "hle": ("hle", "Reply with one line: `correct: yes` or `correct: no`."),
           "xbench": ("xbench", "只写一行：`结论：正确` 或 `结论：错误`。")}
RETRIES = 4  # of a request; a reply that cannot be read is asked for again beside that
NOT_ASKED = "not asked"
CUT = ("length", "content_filter")  # reasons why a reply ended before its end
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class JudgeSettings:
    """A judge: a served model and its prompt.

    The key is in JUDGE_API_KEY or, where that is not set, OPENAI_API_KEY. `temperature` None is the server's own (1 at OpenAI, as
    in the paper's harness; reasoning models take no other). `tries` is how often a verdict is asked for, in all.
    """

    model: str
    prompt: str = "equivalence"
    url: str = OPENAI
    temperature: float | None = None
    max_tokens: int = 4096
    concurrency: int = 16
    tries: int = 3
    timeout_s: float = 120.0

    def __post_init__(self):
        if self.prompt not in FORMATS:
            raise unknown("judge prompt", self.prompt, FORMATS)
        base_url(self.url)  # a mistake is told before anything is played

    @property
    def text(self) -> str:
        return (PROMPTS / f"{self.prompt}.txt").read_text(encoding="utf-8")

    @property
    def family(self) -> str:
        return FORMATS[self.prompt][0]

    def key(self, question: str, truth: str, answer: str) -> str:
        """What a verdict is stored under: another judge, prompt, question, truth or answer is another verdict."""
        where = without_password(base_url(self.url))
        parts = [self.model, where, self.temperature, self.max_tokens, self.text, question, truth, answer]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def identity(self) -> dict:
        """What a score has to name."""
        prompt = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return {"judge": self.model, "url": without_password(self.url), "prompt": self.prompt, "prompt_sha256": prompt,
                "temperature": self.temperature}


class Judge:
    """Asks for verdicts, many at once, and keeps them in a file: what is known is not asked for again.

    `offline`: nothing is asked, and what the file does not hold has no verdict.
    """

    def __init__(self, settings: JudgeSettings, store: Path, offline: bool = False):
        self.settings, self.store, self.offline = settings, store, offline
        self.asked: set[str] = set()  # keys of the verdicts that were wanted here
        self.known = {row["key"]: self._read_again(row) for row in read_jsonl(store)}

    def _read_again(self, row: dict) -> dict:
        """A stored row with the verdict that today's reader finds in its last reply, if that came to its end."""
        if not row["replies"] or row.get("cut"):
            return row
        verdict = read_verdict(self.settings.family, row["replies"][-1])
        return row | {"verdict": verdict, "fault": (row["fault"] or "unreadable") if verdict is None else ""}

    def __call__(self, questions: Sequence[tuple[str, str, str]], on_verdict: Callable[[dict], None] | None = None) -> list[dict]:
        """A row (`verdict`, `replies`, `fault`, tokens read and written) for each (question, truth, answer)."""
        keys = [self.settings.key(*asked) for asked in questions]
        self.asked.update(keys)
        todo = {key: asked for key, asked in zip(keys, questions, strict=True) if self._is_open(key)}
        if todo and not self.offline:
            in_a_thread(self._ask_all(todo, on_verdict))
        return [self.known.get(key) or {"key": key, "verdict": None, "replies": [], "fault": NOT_ASKED} for key in keys]

    def account(self) -> dict:
        """What the questions took, faults and all that was asked again included."""
        rows = [self.known[key] for key in sorted(self.asked & self.known.keys())]
        tokens = {way: sum(row.get(way, 0) for row in rows) for way in ("tokens_read", "tokens_written")}
        given = sum(row["verdict"] is not None for row in rows)
        return {"questions": len(rows), "verdicts": given, **tokens, "dollars": cost(self.settings.model, rows)}

    def _is_open(self, key: str) -> bool:
        return key not in self.known or self.known[key]["verdict"] is None

    async def _ask_all(self, todo: dict[str, tuple[str, str, str]], on_verdict: Callable[[dict], None] | None) -> None:
        servers, slots = _servers(self.settings), asyncio.Semaphore(self.settings.concurrency)

        async def one(key: str, asked: tuple[str, str, str]) -> None:
            async with slots:  # here too: a question that was begun is asked to its end before the next begins
                said = await self._ask(servers, asked)
            before = self.known.get(key, {})
            spent = {way: said[way] + before.get(way, 0) for way in ("tokens_read", "tokens_written")}
            row = {"key": key, "judge": self.settings.model, "prompt": self.settings.prompt, "question": asked[0],
                   "answer": asked[2], **said, **spent}
            append_jsonl(self.store, row)
            self.known[key] = row
            if on_verdict:
                on_verdict(row)

        tasks = [asyncio.create_task(one(key, asked)) for key, asked in todo.items()]
        try:
            await asyncio.gather(*tasks)
        finally:  # of an error or an interrupt, too
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await servers.close()

    async def _ask(self, servers: Servers, asked: tuple[str, str, str]) -> dict:
        """Up to `tries` replies, until one can be read."""
        row = {"verdict": None, "replies": [], "fault": "unreadable", "tokens_read": 0, "tokens_written": 0}
        text = self.settings.text.format(question=asked[0], truth=asked[1], answer=asked[2])
        messages = [{"role": "user", "content": text}]
        for _ in range(self.settings.tries):
            try:
                said, whole = await self._reply(servers, messages, row)
            except EngineFault as fault:  # a judge that is out says nothing on the answer
                return row | {"fault": fault.kind, "words": str(fault)[:200]}
            row["replies"].append(said)
            row["cut"] = not whole
            if whole and (verdict := read_verdict(self.settings.family, said)) is not None:
                return row | {"verdict": verdict, "fault": ""}
            messages = [messages[0], {"role": "assistant", "content": said},
                        {"role": "user", "content": FORMATS[self.settings.prompt][1]}]
        return row

    async def _reply(self, servers: Servers, messages: list[dict], row: dict) -> tuple[str, bool]:
        """What the judge says, and whether it came to its end."""
        more = {} if self.settings.temperature is None else {"temperature": self.settings.temperature}
        reply = await servers.post("judge", {"model": self.settings.model, "messages": messages,
                                             "max_completion_tokens": self.settings.max_tokens, **more})
        try:
            usage, choice = reply.get("usage") or {}, reply["choices"][0]
            row["tokens_read"] += usage.get("prompt_tokens") or 0
            row["tokens_written"] += usage.get("completion_tokens") or 0
            said = choice["message"]["content"] or ""
            return said.encode("utf-8", "replace").decode(), choice.get("finish_reason") not in CUT
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise EngineFault(servers.hide(f"unreadable reply: {one_line(reply)}"), "bad_reply") from error


def _servers(settings: JudgeSettings) -> Servers:
    key = os.environ.get("JUDGE_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
    return Servers([settings.url], ROUTES["chat"], key, settings.concurrency, RETRIES, settings.timeout_s)


def in_a_thread(work) -> None:
    """Run a coroutine to its end in a loop of its own, since a notebook has one running; an interrupt cancels it."""
    loop, done = Future(), Future()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                loop.set_result(runner.get_loop())
                runner.run(work)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    def cancel() -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    thread = threading.Thread(target=run, name="judge", daemon=True)
    thread.start()
    try:
        done.result()
    finally:
        if not done.done():
            loop.result().call_soon_threadsafe(cancel)
        thread.join()
