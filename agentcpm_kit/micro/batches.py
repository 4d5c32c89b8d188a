"""The curriculum of micro-base as batches: step -> groups of (ids, labels), the same whoever computes it.

Every step is drawn from its own seed, so any number of workers gives the same batches in the same order.
"""

import random

from ..agent.tokens import assistant_mask
from .reading import Message, draw_lessons
from .skills import draw_items

IGNORED = -100
READING_ONLY = 0.08  # share of the steps with excerpts alone: mixed in from the start, all else delays lookup
FULL_LEVEL = 0.5  # share of the steps after which lessons have their full length


def encode(tokenizer, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels that are `IGNORED` outside the assistant's turns."""
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    return ids, [i if learned else IGNORED for i, learned in zip(ids, assistant_mask(tokenizer, ids), strict=True)]


def collate(pairs: list[tuple[list[int], list[int]]], pad: int):
    """Two tensors of shape (rows, longest row): ids padded on the right with `pad`, labels with `IGNORED`."""
    import torch

    width = max(len(ids) for ids, _ in pairs)
    ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in pairs])
    labels = torch.tensor([label + [IGNORED] * (width - len(label)) for _, label in pairs])
    return ids, labels


class Curriculum:
    """Map-style dataset for a `DataLoader`: item `step` holds the groups of rows of that step.

    Excerpts first, then longer lessons with general skills beside. Rows of like length share a group, so padding
    stays small.

    Args:
        tokens: of reading per step, about.
        items: general items per step.
        held_out: prompts of general items that are not to be trained on.
    """

    def __init__(self, tokenizer, seed: int, steps: int, tokens: int, items: int, held_out: frozenset[str]):
        self.tokenizer, self.seed, self.steps, self.tokens, self.items = tokenizer, seed, steps, tokens, items
        self.held_out = held_out

    def __len__(self) -> int:
        return self.steps

    def level(self, step: int) -> float:
        """How far the lessons have come, from 0 to 1."""
        return min(1.0, max(0.0, (step / self.steps - READING_ONLY) / (FULL_LEVEL - READING_ONLY)))

    def __getitem__(self, step: int) -> list[tuple]:
        groups = self._reading(step)
        if step >= READING_ONLY * self.steps:
            groups.append([encode(self.tokenizer, chat) for chat in self._skills(step)])
        return [collate(group, self.tokenizer.pad_token_id) for group in groups]

    def _reading(self, step: int) -> list[list]:
        rng, pairs, total = random.Random(f"curriculum {self.seed} {step}"), [], 0
        while total < self.tokens:
            new = [encode(self.tokenizer, lesson) for lesson in draw_lessons(rng, self.level(step))]
            pairs += new
            total += sum(len(ids) for ids, _ in new)
        pairs.sort(key=lambda pair: len(pair[0]))
        return [pairs] if self.level(step) == 0 else [pairs[: len(pairs) * 2 // 3], pairs[len(pairs) * 2 // 3:]]

    def _skills(self, step: int) -> list[list[Message]]:
        items = draw_items(self.items, f"{self.seed} {step}", self.held_out)
        return [[{"role": "user", "content": i.prompt}, {"role": "assistant", "content": i.answer}] for i in items]
