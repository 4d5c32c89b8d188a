"""``agentcpm-kit eval``: play tasks, store transcripts, score them, and report."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines import open_engine
from ..agent.engines.loading import load_tokenizer
from ..agent.engines.servers import without_password
from ..agent.episode import open_tools
from ..agent.tokens import ByteTokenizer
from ..agent.trajectory import Trajectory
from ..errors import KitError
from ..files import append_jsonl, read_jsonl, write_json
from ..profile import Profile, load_profile, set_seed
from ..sections import Limits
from ..world.tasks import Task
from .guard import Blocklist, guarded
from .harness import Plan, Score, Verdict, generate, opened, require_recorded, require_stored, rule, score
from .judge import NOT_ASKED, Judge, JudgeSettings
from .options import Options
from .replay import TRAFFIC, Record, ReplayedEngine, Traffic
from .reports import write_reports
from .show import judging, print_comparison, print_metrics, progress
from .summary import compare, require_same_tasks
from .tasks import load_suite
from .throttle import throttled


def eval_command(options: Options, against: Path | None = None) -> None:
    """Evaluate, report, and print."""
    options = options.resolved()
    others = _others(against, options) if against else []
    rows = evaluate(options)
    (options.out / "comparison.json").unlink(missing_ok=True)  # of an earlier scoring
    print_metrics(json.loads((options.out / "metrics.json").read_text()))
    if against:
        differences = compare(rows, others)
        write_json(options.out / "comparison.json", {"against": str(against), **{k: e.fields() for k, e in differences.items()}})
        print_comparison(differences, against)
    if (page := options.out / "transcripts.html").is_file():
        print(f"transcripts to read: {page}")


def _others(folder: Path, options: Options) -> list[dict]:
    """The rows to compare with, before anything is played."""
    if not (rows := read_jsonl(folder / "rows.jsonl")) or not (folder / "metrics.json").is_file():
        raise KitError(f"{folder} holds no scored evaluation to compare with")
    theirs, ours = json.loads((folder / "metrics.json").read_text())["scorer"], options.scorer()
    if theirs != ours:
        raise KitError(f"{folder} was scored by {theirs}, and this would be by {ours}; score both alike, with --score-only")
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
    write_reports(options.out, plan, rows, options.scorer(), judge.account() if judge else None, options.show_text)
    return rows


def _play(options: Options, plan: Plan, profile: Profile) -> None:
    policy, limits = ContextPolicy.of(profile), options.limits(profile)
    if options.replay:
        return _replay(options, plan, limits, policy)
    with _engine(options, profile) as engine, open_tools(options.tools) as tools, progress(plan, options.out) as told:
        tools = throttled(tools, options.tool_calls)  # below the guard: what is refused needs no slot
        tools = guarded(tools, Blocklist.read(options.blocked), _blocked_log(options.out / "blocked.jsonl"))
        record = Record(options.out / TRAFFIC) if options.record or (options.out / TRAFFIC).is_file() else None

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
    traffic = Traffic(options.replay / TRAFFIC)
    require_recorded(options.replay, plan)
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
        if found and all(row["verdict"] is None and (row.get("words") or row["fault"] == NOT_ASKED) for row in found):
            where, why = f"{judge.settings.model} at {without_password(judge.settings.url)}", found[0].get("words", NOT_ASKED)
            raise KitError(f"the judge {where} answered none of {len(set(asked))} questions ({why}); no report was changed. See "
                           "to it, then score again with --score-only")
        rows = iter(found)
        said = [next(rows) if t.answer is not None else {"verdict": False, "fault": ""} for t, _ in pairs]
        return [(row["verdict"], f"judge: {row['fault']}") for row in said]

    return ask
