"""A task of any family: question, answer, and the proof that it can be solved and has one answer only.

Every task carries its gold tool path (`steps`): what to call, and what the result must contain for the next step to be
possible. The scripted oracle follows it. Files are in the reference's format (``task_id``, ``Question``, ``Final
answer``) with our fields beside.
"""

from dataclasses import asdict, dataclass

from .atlas import World, WorldSpec

FAMILIES = {  # family -> the benchmark that it stands in for, the skill
    "assist": ("GAIA-text", "mixed steps, some arithmetic with the code tool"),
    "constraints": ("BrowseComp", "find the one entity that meets several indirect constraints"),
    "constraints_zh": ("BrowseComp-ZH", "the same in Chinese"),
    "reason": ("HLE-text", "little search, much reasoning over given facts"),
    "multihop": ("FRAMES", "combine several pages, compare numbers and dates"),
    "navigate": ("WebWalkerQA", "follow links from a start page; search is off"),
    "conflict": ("SEAL-0", "sources contradict: trust, dates, false premises"),
    "deep": ("xbench-DeepSearch", "long chains through lists, many distractors"),
}


@dataclass(frozen=True)
class GoldStep:
    """One call of the gold path. `thought` precedes it; `evidence` are the passages that its result must contain."""

    tool: str
    arguments: dict
    evidence: tuple[str, ...]
    thought: str = ""


@dataclass(frozen=True)
class Task:
    """`aliases` are other right answers; `tools` are those that the agent is offered; `conclusion` is the last thought."""

    task_id: str
    question: str
    answer: str
    family: str
    level: int
    world: WorldSpec
    aliases: tuple[str, ...] = ()
    tools: tuple[str, ...] = ("search", "fetch_url")
    steps: tuple[GoldStep, ...] = ()
    conclusion: str = ""
    why_unique: str = ""

    @property
    def evidence(self) -> tuple[str, ...]:
        """Gold passages in the order in which they are needed."""
        return tuple(passage for step in self.steps for passage in step.evidence)

    @property
    def pages(self) -> tuple[str, ...]:
        """Urls of the gold pages in the order in which they are read."""
        return tuple(dict.fromkeys(url for step in self.steps for url in step.arguments.get("url", ())))

    def open_world(self) -> World:
        return self.world.open()

    def record(self) -> dict:
        """The task as a line of a task file."""
        fields = asdict(self)
        return {"task_id": fields.pop("task_id"), "Question": fields.pop("question"),
                "Final answer": fields.pop("answer"), **fields}

    @classmethod
    def from_record(cls, record: dict) -> "Task":
        fields = dict(record)
        names = {"task_id": "task_id", "Question": "question", "Final answer": "answer"}
        fields = {names.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        steps = tuple(GoldStep(**{**step, "evidence": tuple(step["evidence"])}) for step in fields.pop("steps"))
        return cls(**{**fields, "world": WorldSpec(**fields["world"]), "steps": steps})
