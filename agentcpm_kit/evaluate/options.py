"""The options of ``agentcpm-kit eval``: which go together, and what an evaluation's folder depends on."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines.openai import ROUTES
from ..agent.engines.servers import base_url, without_password
from ..artefacts import CHECKSUMS, file_sha256
from ..ask import best_checkpoint
from ..errors import KitError, unknown
from ..profile import Profile
from ..sections import Limits
from .benchmarks import BENCHMARKS
from .guard import Blocklist
from .harness import Plan, begun
from .judge import OPENAI, JudgeSettings
from .replay import TRAFFIC
from .tasks import load_suite

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
        """With the defaults that depend on others: which model, and whose limits. Resolved again, they are the same.

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
        if self.base_url:
            base_url(self.base_url)
        self._require_sense()
        model = self.model or ("" if self.score_only else str(best_checkpoint()))
        return replace(self, model=model, profile=self.profile or ("paper" if self.engine == "openai" else "micro"))

    def _require_sense(self) -> None:
        """What is said of a judge, a rule or a recording needs one."""
        if not self.judge and (self.judge_prompt or self.judge_url != OPENAI or self.offline):
            raise KitError("--judge-url, --judge-prompt and --offline are about a judge; name its model with --judge")
        if self.judge and self.tolerance:
            raise KitError("--tolerance is for scoring by rule, and --judge scores here")
        if self.record and (self.replay or begun(self.out) and not (self.out / TRAFFIC).is_file()):
            raise KitError(f"--record keeps what is answered from the first run on, and {self.out} was begun without it (or is a "
                           "replay); give another --out")
        if self.replay and self.replay.resolve() == self.out.resolve():
            raise KitError("--replay plays into a folder of its own; give another --out")
        if self.blocked:
            Blocklist.read(self.blocked)

    def judging(self) -> JudgeSettings | None:
        if not self.judge:
            return None
        prompt = self.judge_prompt or (BENCHMARKS[self.tasks].prompt if self.tasks in BENCHMARKS else "equivalence")
        return JudgeSettings(self.judge, prompt, self.judge_url, concurrency=self.judge_concurrency)

    def scorer(self) -> dict:
        """What a score has to name."""
        settings = self.judging()
        return settings.identity() if settings else {"rule": "exact match with aliases", "tolerance": self.tolerance}

    def limits(self, profile: Profile) -> Limits:
        """The profile's; its context in bytes where those are counted."""
        room = profile.limits.max_context_tokens * (BYTES_PER_TOKEN if self.counts_bytes else 1)
        return profile.limits.changed(max_context_tokens=room)

    def plan(self, profile: Profile) -> Plan:
        """What is to be played, and under which settings. Needs `resolved` options."""
        settings = {"engine": self.engine, "model": identity(self), "served_at": without_password(self.base_url),
                    "temperature": self.temperature, "tools": tools_named(self.tools),
                    "limits": self.limits(profile).model_dump(), "context": ContextPolicy.of(profile).settings(),
                    "counted_in": "bytes" if self.counts_bytes else "tokens",
                    "blocked": file_sha256(self.blocked)[:16] if self.blocked else "data/blocked.yaml"}
        return Plan(load_suite(self.tasks).first(self.limit), self.runs, self.seed, settings)


def identity(options: Options) -> dict:
    """What tells one model from another: a folder's checksums, or a served model's name."""
    if options.engine == "openai":
        return {"name": options.model, "api": options.api,
                "tokenizer": str(options.tokenizer.name) if options.tokenizer else "bytes"}
    folder = Path(options.model)
    files = [folder / CHECKSUMS] if (folder / CHECKSUMS).is_file() else sorted(folder.glob("*.safetensors"))
    return {"name": folder.name, "sha256": " ".join(file_sha256(file)[:16] for file in files)}


def tools_named(source: str) -> str:
    """What tells one set of tools from another, without what may be secret in it: URLs and commands may hold keys."""
    if not source:
        return "atlas"
    digest = file_sha256(Path(source)) if Path(source).is_file() else hashlib.sha256(source.encode()).hexdigest()
    name = without_password(source) if "://" in source else Path(source.split()[0]).name
    return f"{name} {digest[:12]}"
