"""The training set as a file: written with its card and checksums, read back line by line, refused where malformed."""

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from ..agent.trajectory import Trajectory, write_trajectories
from ..artefacts import write_checksums
from ..errors import KitError
from ..files import write_atomic
from ..profile import repo_root
from ..stage import stage_folder
from .data import keep_good, learned_outside, oracle_trajectories, training_rows, training_tasks

FILE = "trajectories.jsonl"


def save_trajectories(folder: Path, trajectories: list[Trajectory], make_card: Callable[[Path], str]) -> str:
    """Write ``trajectories.jsonl``, its dataset card (``README.md``, made of the written file) and checksums; the card."""
    (folder / FILE).unlink(missing_ok=True)
    write_trajectories(folder / FILE, trajectories)
    card = make_card(folder / FILE)
    write_atomic(folder / "README.md", card)
    write_checksums(folder)
    return card


def read_training_set(path: Path, tokenizer, skip_malformed: bool = False, longest: int | None = None,
                      ) -> tuple[list[Trajectory], list[str]]:
    """The trajectories of a jsonl file, and what is wrong with each malformed line ("line 7: ...").

    A context of more than `longest` tokens is wrong too: the agent of the profile could never get that far.

    Raises:
        KitError: no file, nothing to learn from in it, or malformed lines and not told to skip them; the lines are named.
    """
    if not path.is_file():
        raise KitError(f"no trajectories in {path}")
    good, malformed = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            good.append(_parsed(line, tokenizer, longest))
        except ValueError as error:
            malformed.append(f"line {number}: {_in_short(error)}")
    if malformed and not skip_malformed:
        shown = "; ".join(malformed[:5]) + (f"; and {len(malformed) - 5} more" if len(malformed) > 5 else "")
        raise KitError(f"{path.name} has {len(malformed)} malformed lines of {len(malformed) + len(good)}: {shown}; "
                       "mend them, or tell the stage to skip them (skip_malformed=True)")
    if not good:
        raise KitError(f"{path} holds no trajectory to learn from")
    return good, malformed


def _parsed(line: bytes, tokenizer, longest: int | None) -> Trajectory:
    """
    Raises:
        ValueError: the line is no trajectory that `tokenizer`'s model can learn from.
    """
    trajectory, size = Trajectory.model_validate_json(line), len(tokenizer)
    for context in trajectory.contexts:
        if len(context.token_ids) != len(context.loss_mask):
            raise ValueError(f"{len(context.token_ids)} token_ids and {len(context.loss_mask)} values of loss_mask")
        if context.logprobs and len(context.logprobs) != len(context.token_ids):  # SFT does not need them
            raise ValueError(f"{len(context.token_ids)} token_ids and {len(context.logprobs)} logprobs")
        if longest and len(context.token_ids) > longest:
            raise ValueError(f"{len(context.token_ids):,} tokens, and an agent's context has {longest:,} "
                             "(limits.max_context_tokens)")
        if odd := [m for m in context.loss_mask if m not in (0, 1)]:
            raise ValueError(f"loss_mask holds {odd[0]}; it is 1 on what is learned, else 0")
        if strange := [i for i in context.token_ids if not 0 <= i < size]:
            raise ValueError(f"token id {strange[0]}, and the tokenizer has {size} tokens")
    if outside := learned_outside(trajectory, tokenizer):
        raise ValueError(f"{outside} tokens to be learned stand outside the assistant's turns")
    training_rows([trajectory])
    return trajectory


def _in_short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or ("not JSON" if first["type"] == "json_invalid" else "the whole line")
        return f"{place}: {first['msg'].lower().replace('at line 1 column', 'at character')}"
    return str(error)


def load_trajectories(stage, path: str = "", skip_malformed: bool = False) -> list[Trajectory]:
    """The training set of notebook 03, or, if that was not run, the oracle's part of it, made again in seconds.

    With `path` (absolute, or from the repository's root), the trajectories of a file of the reader's own instead. Lines that
    are skipped are printed, and what notebook 03 would have filtered out of the reader's records is counted.

    Raises:
        KitError: as `read_training_set`; or the files of notebook 03 differ from their checksums.
    """
    from ..agent.engines.loading import load_tokenizer

    tokenizer = load_tokenizer(stage.base_model())
    if not path and not (stage_folder(stage.profile.name, stage.seed, "03_trajectories") / "DONE").is_file():
        print("notebook 03 was not run: training on the oracle's trajectories alone, made again here")
        tasks = training_tasks(stage.profile, stage.profile.trajectories.oracle, 2 * stage.seed)
        return keep_good(oracle_trajectories(tasks, tokenizer, stage.profile).trajectories).kept
    file = repo_root() / path if path else stage.artefact("03_trajectories", "trajectories") / FILE
    found, malformed = read_training_set(file, tokenizer, skip_malformed, stage.profile.limits.max_context_tokens)
    for line in malformed:
        print(f"skipped {file.name}, {line}")
    if dropped := keep_good(found).dropped if path else {}:
        print(f"note: the filters of notebook 03 would drop some of these records: {dict(dropped)}")
    return found
