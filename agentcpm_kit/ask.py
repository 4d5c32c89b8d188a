"""``agentcpm-kit ask``: one episode with the best micro checkpoint, printed for a person."""

from pathlib import Path

from .agent.context import ContextPolicy
from .agent.engines import open_engine
from .agent.episode import open_tools, run_episodes
from .agent.tokens import encode
from .agent.trajectory import EndReason
from .errors import KitError
from .evaluate.scorers import is_right
from .profile import load_profile, repo_root, set_seed
from .report.view import print_trajectory
from .stage import stage_folder
from .world import Task, World, make_tasks, make_world, world_seeds

# Best first: the last stage that has one, of a run here or as shipped.
STAGES = (("07_rl", "clean", "data/models/micro-rl"), ("05_merge", "merged", "data/models/micro-merge"),
          ("04_sft", "model", "data/models/micro-sft"))


def best_checkpoint() -> Path:
    """The most trained micro checkpoint that is here."""
    for stage, name, shipped in STAGES:
        for path in (stage_folder("micro", 0, stage) / "checkpoints" / name, repo_root() / shipped):
            if (path / "SHA256SUMS").is_file():
                return path
    raise KitError("no trained micro checkpoint is here; `make reproduce` makes one")


def unseen_world(number: int) -> World:
    settings = load_profile("micro").world
    return make_world(world_seeds("test", number + 1)[-1], settings.entities, settings.redundancy)


def example_tasks(number: int, count: int) -> list[Task]:
    """Two-hop tasks of one unseen world."""
    settings, world = load_profile("micro").world, unseen_world(number)
    tasks = make_tasks("test", 400 * count, 2, number + 1, settings.entities, settings.redundancy)
    return [t for t in tasks if t.world == world.spec][:count]


def print_examples(number: int, count: int) -> None:
    for task in example_tasks(number, count):
        print(f"{task.question}   (answer: {task.answer})")


def ask(question: str, model: Path | None, number: int, seed: int, tools: str | None = None) -> None:
    """Play the episode and print it; in the atlas itself, the answer to one of the world's own questions is checked.

    `tools` is the URL, command or config file of MCP servers whose tools the agent gets instead of the atlas's.

    Raises:
        KitError: no checkpoint, the question has words that the micro model does not know, no server, or the engine failed.
    """
    profile = load_profile("micro")
    set_seed(seed, profile.threads)
    path = model or best_checkpoint()
    world = unseen_world(number)
    task = Task("ask", question, "", "multihop", 0, world.spec)
    with open_engine(path, profile, temperature=0.0) as engine:
        _refuse_unknown_words(question, engine.tokenizer)
        with open_tools(tools) as factory:
            trajectory = run_episodes([task], engine, factory, profile.limits, ContextPolicy.of(profile), seed=seed)[0]
    if trajectory.end_reason == EndReason.ENGINE_FAULT:
        raise KitError(f"the engine failed: {trajectory.message}")
    print(f"model: {path.name}, {f'tools of {tools}' if tools else f'unseen world {number}'}")
    print_trajectory(trajectory)
    known = None if tools else next((t for t in example_tasks(number, 50) if t.question == question), None)
    if known and trajectory.answer is not None:
        print("correct" if is_right(trajectory.answer, known) else f"wrong: the atlas says {known.answer}")


def _refuse_unknown_words(question: str, tokenizer) -> None:
    ids = encode(tokenizer, question)
    words = [w for w in question.replace("?", " ").replace(".", " ").split()
             if tokenizer.unk_token_id in encode(tokenizer, w)]
    if tokenizer.unk_token_id in ids:
        raise KitError(f"the micro model knows no word {', '.join(map(repr, words))}; "
                       "`agentcpm-kit ask --examples 5` prints questions that it can read")
