"""The dataset card of a training set: where every record comes from, what was dropped and why, and hashes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..agent.trajectory import Trajectory
from ..artefacts import file_sha256
from ..profile import Profile
from ..world import Task
from .data import FILTERS, Filtered

TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

Trajectories of a search agent on the plain edition of the atlas, a fictional encyclopedia; for supervised fine-tuning
of `{{ base }}`, in the tokens of its tokenizer. The paper's own trajectories are not public.

## Records

| source | played | kept |{% for reason in reasons %} {{ reason }} |{% endfor %}
| --- | --- | --- |{% for reason in reasons %} --- |{% endfor %}
{% for row in sources %}| {{ row | join(' | ') }} |
{% endfor %}
What a filter drops, the first that holds counts:
{% for reason in reasons %}
- `{{ reason }}`: {{ filters[reason] }}
{%- endfor %}

## Size

| | total | median | longest |
| --- | --- | --- | --- |
{% for row in sizes %}| {{ row | join(' | ') }} |
{% endfor %}
Records by number of hops: {{ hops }}.

## Format

One JSON object a line (`agentcpm_kit.agent.trajectory.Trajectory`). `contexts[].token_ids` is what the model sees,
`loss_mask` is 1 on what it is taught: the assistant's own tokens, checked against the chat markup for every token.

## Origin

Worlds of the split `train` alone, {{ worlds }} of {{ profile.world.entities }} pages; validation and test worlds are
others by construction. Licence: Apache-2.0, like the kit. Made by `agentcpm-kit run --profile {{ profile.name }}
--stages 03 --seed {{ seed }}`.

| file | SHA-256 |
| --- | --- |
{% for file, digest in hashes.items() %}| {{ file }} | `{{ digest }}` |
{% endfor %}"""


def dataset_card(profile: Profile, seed: int, base: Path, sources: dict[str, tuple[int, Filtered]], tasks: Sequence[Task],
                 data: Path) -> str:
    """Markdown with the metadata block that the hub reads.

    Args:
        sources: name -> episodes played, and what the filters made of them.
        tasks: all that was asked, of every source.
        data: the jsonl file, written already: its hash goes into the card.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    kept = [t for _, filtered in sources.values() for t in filtered.kept]
    name = f"agentcpm-kit trajectories, profile {profile.name}, seed {seed}"
    metadata = DatasetCardData(license="apache-2.0", language="en", pretty_name=name, size_categories=_category(len(kept)),
                               tags=["agent", "tool-use", "synthetic"])
    reasons = [r for r in FILTERS if any(filtered.dropped[r] for _, filtered in sources.values())]
    rows = [[source, played, len(f.kept), *(f.dropped[r] for r in reasons)] for source, (played, f) in sources.items()]
    files = (data, base / "tokenizer.json", *sorted(base.glob("*.safetensors")))
    hashes = {path.name: file_sha256(path) for path in files}
    asked = {task.task_id: task for task in tasks}
    found = [asked[t.task_id] for t in kept]
    card = DatasetCard.from_template(metadata, template_str=TEMPLATE, name=name, base=base.name, reasons=reasons, sources=rows,
                                     filters=FILTERS, sizes=_sizes(kept), hops=_hops(found), profile=profile, seed=seed,
                                     worlds=len({task.world for task in found}), hashes=hashes)
    return str(card)


def _sizes(kept: Sequence[Trajectory]) -> list[list]:
    values = {"turns": [t.turns for t in kept],
              "tokens": [sum(len(c.token_ids) for c in t.contexts) for t in kept],
              "tokens learned": [sum(sum(c.loss_mask) for c in t.contexts) for t in kept]}
    return [[what, f"{sum(v):,}", f"{np.median(v):.0f}", max(v)] for what, v in values.items()]


def _hops(tasks: Sequence[Task]) -> str:
    return ", ".join(f"{hops}: {count}" for hops, count in sorted(Counter(task.hops for task in tasks).items()))


def _category(count: int) -> str:
    return "n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"
