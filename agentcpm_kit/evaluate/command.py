"""``agentcpm-kit eval``: play tasks, store transcripts, score them, and report."""

import hashlib
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines import open_engine
from ..agent.engines.loading import load_tokenizer
from ..agent.engines.openai import ROUTES
from ..agent.engines.servers import without_password
from ..agent.episode import open_tools
from ..agent.tokens import ByteTokenizer
from ..agent.trajectory import Trajectory
from ..artefacts import CHECKSUMS, file_sha256
from ..ask import best_checkpoint
from ..errors import KitError, unknown
from ..files import append_jsonl, read_jsonl
from ..profile import Profile, load_profile, set_seed
from ..sections import Limits
from ..world.tasks import Task
from .benchmarks import BENCHMARKS
from .guard import Blocklist, guarded
from .harness import Plan, Score, Verdict, generate, opened, require_stored, rule, score
from .judge import OPENAI, Judge, JudgeSettings
from .replay import Record, ReplayedEngine, Traffic
from .reports import write_reports
from .show import judging, print_comparison, print_rows, progress
from .summary import require_same_tasks
from .tasks import load_suite
from .throttle import throttled

ENGINES = ("transformers", "vllm", "openai")
BYTES_PER_TOKEN = 4  # roughly, of English; where text is counted in bytes


@dataclass(frozen=True)
class Options:
    """What the command line says; see its help."""

    tasks: str
    out: Path
    engine: str = "transformers"
    model: str = ""
    base_url: str = ""
    api: str = "chat"
    tokenizer: Path | None = None
    profile: str = ""
    tools: str = ""
    runs: int = 8
    limit: int = 0
    temperature: float = 1.0
    concurrency: int = 16
    tool_calls: int = 0
    timeout_s: float = 300.0
    retries: int = 6
    seed: int = 0
    tolerance: float = 0.0
    judge: str = ""
    judge_url: str = OPENAI
    judge_prompt: str = ""
    judge_concurrency: int = 16
    blocked: Path | None = None
    score_only: bool = False
    offline: bool = False
    record: bool = False
    replay: Path | None = None
    show_text: bool = False

    @property
    def counts_bytes(self) -> bool:
        """Nobody told which tokenizer the served model has."""
        return self.engine == "openai" and self.tokenizer is None

    def resolved(self) -> "Options":
        """With the defaults that depend on others: which model, and whose limits.

        Raises:
            KitError: options that do not go together.
        """
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.engine == "openai" and not (self.model and self.base_url):
            raise KitError("--engine openai needs --base-url (such as http://127.0.0.1:8000/v1) and --model, the name there")
        if self.base_url and self.engine != "openai":
            raise KitError(f"--base-url is for --engine openai, and the engine is {self.engine}")
        if self.api not in ROUTES:
            raise unknown("api", self.api, ROUTES)
        if self.engine == "openai" and self.api == "completions" and self.tokenizer is None:
            raise KitError("the API `completions` sends token ids, and needs --tokenizer: the folder of the served model's own")
        model = self.model or ("" if self.score_only else str(best_checkpoint()))
        prompt = BENCHMARKS[self.tasks].prompt if self.tasks in BENCHMARKS else "equivalence"
        return replace(self, model=model, judge_prompt=self.judge_prompt or prompt,
                       profile=self.profile or ("paper" if self.engine == "openai" else "micro"))

    def judging(self) -> JudgeSettings | None:
        if not self.judge:
            return None
        return JudgeSettings(self.judge, self.judge_prompt, self.judge_url, concurrency=self.judge_concurrency)

    def limits(self, profile: Profile) -> Limits:
        """The profile's; its context in bytes where those are counted."""
        room = profile.limits.max_context_tokens * (BYTES_PER_TOKEN if self.counts_bytes else 1)
        return profile.limits.changed(max_context_tokens=room)

    def plan(self, profile: Profile) -> Plan:
        """What is to be played, and under which settings. Needs `resolved` options."""
        blocked = self.blocked.read_bytes() if self.blocked else b""
        settings = {"engine": self.engine, "model": _identity(self), "temperature": self.temperature,
                    "tools": self.tools or "atlas", "limits": self.limits(profile).model_dump(),
                    "context": ContextPolicy.of(profile).settings(), "counted_in": "bytes" if self.counts_bytes else "tokens",
                    "blocked": hashlib.sha256(blocked).hexdigest()[:16] if blocked else "data/blocked.yaml"}
        return Plan(load_suite(self.tasks).first(self.limit), self.runs, self.seed, settings)


def _identity(options: Options) -> dict:
    """What tells one model from another: a folder's checksums, or a served model's name and address (without a password)."""
    if options.engine == "openai":
        return {"name": options.model, "url": without_password(options.base_url), "api": options.api,
                "tokenizer": str(options.tokenizer.name) if options.tokenizer else "bytes"}
    folder = Path(options.model)
    files = [folder / CHECKSUMS] if (folder / CHECKSUMS).is_file() else sorted(folder.glob("*.safetensors"))
    return {"name": folder.name, "sha256": " ".join(file_sha256(file)[:16] for file in files)}


def eval_command(options: Options, against: Path | None = None) -> None:
    """Evaluate, report, and print."""
    others = _others(against, options) if against else []
    rows = evaluate(options)
    print_rows(rows)
    if against:
        print_comparison(rows, others, against)
    if (page := options.out / "transcripts.html").is_file():
        print(f"transcripts to read: {page}")


def _others(folder: Path, options: Options) -> list[dict]:
    """The rows to compare with, before anything is played."""
    if not (rows := read_jsonl(folder / "rows.jsonl")):
        raise KitError(f"{folder} holds no scored evaluation to compare with")
    require_same_tasks([task.task_id for task in load_suite(options.tasks).first(options.limit).tasks],
                       list(dict.fromkeys(row["task_id"] for row in rows)))
    return rows


def evaluate(options: Options) -> list[dict]:
    """Play what the folder lacks (unless `score_only`), score all of it, write the reports, and return the rows."""
    options = options.resolved()
    profile, settings = load_profile(options.profile), options.judging()
    plan = options.plan(profile)
    if not (options.tools or options.score_only or options.replay):
        for task in plan.suite.tasks:
            task.require_world()
    if options.score_only:
        plan = replace(plan, settings=require_stored(options.out, plan))
    else:
        set_seed(options.seed, profile.threads)
        with opened(options.out, plan):
            _play(options, plan, profile)
    judge = _judge(options, settings) if settings else None
    rows = score(options.out, plan, judged_by(judge) if judge else rule(options.tolerance))
    by_rule = {"rule": "exact match with aliases", "tolerance": options.tolerance}
    write_reports(options.out, plan, rows, judge.account() if judge else by_rule, options.show_text)
    return rows


def _play(options: Options, plan: Plan, profile: Profile) -> None:
    policy, limits = ContextPolicy.of(profile), options.limits(profile)
    if options.replay:
        return _replay(options, plan, limits, policy)
    with _engine(options, profile) as engine, open_tools(options.tools) as tools, progress(plan, options.out) as told:
        tools = throttled(tools, options.tool_calls)  # below the guard: what is refused needs no slot
        tools = guarded(tools, Blocklist.read(options.blocked), _blocked_log(options.out / "blocked.jsonl"))
        record = Record(options.out / "traffic.jsonl") if options.record else None

        def on_end(trajectory: Trajectory) -> None:
            if record:
                record.end(trajectory)
            told(trajectory)

        if record:
            engine, tools = record.engine(engine), record.tools(tools)
        generate(options.out, plan, engine, tools, limits, policy, on_end)


def _blocked_log(path: Path):
    """Tools answer in threads of their own; lines are written one after the other."""
    lock = threading.Lock()

    def log(episode: str, tool: str, address: str) -> None:
        with lock:
            append_jsonl(path, {"episode": episode, "tool": tool, "address": address.encode("utf-8", "replace").decode()})

    return log


def _replay(options: Options, plan: Plan, limits: Limits, policy: ContextPolicy) -> None:
    """The same loop over recorded answers of engine and tools; verdicts are taken over."""
    traffic = Traffic(options.replay / "traffic.jsonl")
    with progress(plan, options.out) as told:
        engine = ReplayedEngine(traffic, _tokenizer(options), options.concurrency)
        generate(options.out, plan, engine, traffic.tools, limits, policy, told)
    traffic.require_all()
    if (verdicts := options.replay / "verdicts.jsonl").is_file():
        shutil.copy(verdicts, options.out / "verdicts.jsonl")


def _tokenizer(options: Options):
    if options.engine != "openai":
        return load_tokenizer(options.model)
    return load_tokenizer(options.tokenizer) if options.tokenizer else ByteTokenizer()


def _engine(options: Options, profile: Profile):
    if options.engine != "openai":
        model = profile.model.changed(engine=options.engine)
        return open_engine(options.model, profile.model_copy(update={"model": model}), options.temperature)
    from ..agent.engines.openai import OpenAIEngine, require_servers

    require_servers([options.base_url])
    return OpenAIEngine([options.base_url], options.model, _tokenizer(options), options.temperature, options.api,
                        options.concurrency, options.retries, options.timeout_s)


def _judge(options: Options, settings: JudgeSettings) -> Judge:
    return Judge(settings, options.out / "verdicts.jsonl", options.offline or options.replay is not None)


def judged_by(judge: Judge) -> Score:
    """The scorer that asks a judge."""

    def ask(pairs: list[tuple[Trajectory, Task]]) -> list[Verdict]:
        """Who gave no answer is wrong without a judge."""
        asked = [(task.question, " or ".join([task.answer, *task.aliases]), t.answer)
                 for t, task in pairs if t.answer is not None]
        with judging(len(asked)) as told:
            found = judge(asked, told)
        if found and all(row.get("words") for row in found):
            where = f"{judge.settings.model} at {without_password(judge.settings.url)}"
            raise KitError(f"the judge {where} answered none of {len(found)} questions ({found[0]['words']}); no report was "
                           "changed. See to it, then score again with --score-only")
        rows = iter(found)
        said = [next(rows) if t.answer is not None else {"verdict": False, "fault": ""} for t, _ in pairs]
        return [(row["verdict"], f"judge: {row['fault']}") for row in said]

    return ask
