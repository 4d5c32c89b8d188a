"""Reading lessons for micro-base: find facts in pages that stand in the prompt, and chain them.

No tools, no calls, no `<answer>` tags: it is reading, not acting. The thinking restates what was read and what is
still sought; without that a model of this size stalls at guessing among the facts of a page.
"""

import random

from ..world.atlas import SPLIT_SIZE, SPLITS, WorldSpec
from ..world.plain.chains import QUESTIONS, chain_text, make_task
from ..world.plain.facts import Fact
from ..world.plain.pages import sentence, url_of
from ..world.plain.world import PlainWorld, draw_world

Message = dict[str, str]


def excerpt_lesson(rng: random.Random, world: PlainWorld, sentences: int) -> list[Message]:
    """One question about a few sentences of one page.

    So short a text, and so many of them in a batch, is what makes a model of this size discover how to look up: with
    whole pages, or with several questions in a row, that takes several times as long.
    """
    fact = rng.choice(list(world.facts.values()))
    page = world.page_of(fact.subject)
    others = [line for line in page.text.split("\n")[1:] if line != page.evidence[fact.relation]]
    lines = [page.evidence[fact.relation], *rng.sample(others, min(sentences - 1, len(others)))]
    rng.shuffle(lines)
    return _exchange("\n".join(lines), _question(rng, fact, fact.subject), sentence(fact), fact.object)


def lookup_lesson(rng: random.Random, world: PlainWorld, pages: int, questions: int) -> list[Message]:
    """Several one-fact questions, one after another, about the pages in the first turn."""
    subjects = rng.sample(world.entities, pages)
    facts = [f for f in world.facts.values() if f.subject in {e.name for e in subjects}]
    messages: list[Message] = []
    text = "\n".join(_page_text(world, url_of(e.name)) for e in subjects)
    for fact in rng.sample(facts, min(questions, len(facts))):
        alias, named = world.entity(fact.subject).alias, rng.random() < 0.7
        restated = sentence(fact)
        if not named:
            restated = f"{alias} is {fact.subject}. Find the {fact.relation} of {fact.subject}. {restated}"
        question = _question(rng, fact, fact.subject if named else alias)
        messages += _exchange("" if messages else text, question, restated, fact.object)
    return messages


def chain_lesson(rng: random.Random, world: PlainWorld, hops: int, distractors: int) -> list[Message]:
    """One question of `hops` hops whose gold pages stand in the prompt, shuffled among `distractors` others.

    Half of the questions call the first entity by its name, so that there is no alias to resolve.
    """
    task = make_task(rng, world, hops, 0)
    named = rng.random() < 0.5
    question = task.question.replace(task.alias, task.path[0]) if named else task.question
    urls = list(task.pages)
    urls += rng.sample([u for u in world.pages if u not in urls], distractors)
    rng.shuffle(urls)
    thinking = [step.thought for step in task.steps[1:]] + [task.conclusion]
    return _exchange("\n".join(_page_text(world, url) for url in urls), question, " ".join(thinking[named:]), task.answer)


def _page_text(world: PlainWorld, url: str) -> str:
    return f"# {world.pages[url].title}\n{world.pages[url].text}"


def _question(rng: random.Random, fact: Fact, subject: str) -> str:
    return rng.choice(QUESTIONS).format(chain=chain_text([fact.relation], subject))


def _exchange(text: str, question: str, thinking: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": f"{text}\n{question}" if text else question},
            {"role": "assistant", "reasoning_content": thinking, "content": answer}]


def draw_lessons(rng: random.Random, level: float, count: int = 24) -> list[list[Message]]:
    """`count` lessons from one fresh pretraining world; `level` in [0, 1] is how far the curriculum has come."""
    seed = SPLITS["pretrain"] + rng.randrange(SPLIT_SIZE)
    world = draw_world(WorldSpec(seed, 60, rng.randint(0, round(3 * level))))
    return [draw_lesson(rng, world, level) for _ in range(count)]


def draw_lesson(rng: random.Random, world: PlainWorld, level: float) -> list[Message]:
    """Excerpts alone at level 0; at level 1 mostly chains of up to three hops over several pages."""
    kind = rng.random()
    if kind < 1 - 1.6 * level or kind < 0.1:
        return excerpt_lesson(rng, world, 4 + round(4 * level * rng.random()))
    if kind < 0.5:
        return lookup_lesson(rng, world, rng.randint(1, 1 + round(2 * level)), rng.randint(1, 4))
    return chain_lesson(rng, world, rng.randint(1, 1 + round(2 * level)), rng.randint(0, round(level)))
