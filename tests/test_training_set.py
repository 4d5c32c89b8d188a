"""The training set as a file: what is learned, what is refused line by line, and its card."""

import json

import pytest

from agentcpm_kit.agent.tokens import assistant_mask
from agentcpm_kit.agent.trajectory import Trajectory
from agentcpm_kit.artefacts import file_sha256, verify_checkpoint
from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import repo_root
from agentcpm_kit.train.card import dataset_card
from agentcpm_kit.train.data import FILTERS, keep_good, learned_outside, oracle_trajectories, padding_share, training_tasks
from agentcpm_kit.train.training_set import FILE, load_trajectories, read_training_set, save_trajectories


@pytest.fixture(scope="module")
def tasks(smoke):
    return training_tasks(smoke, 6)


@pytest.fixture(scope="module")
def found(tasks, tokenizer, smoke):
    return oracle_trajectories(tasks, tokenizer, smoke).trajectories


@pytest.fixture
def folder(found, tmp_path):
    save_trajectories(tmp_path / "set", found, lambda file: f"card of {file.name}")
    return tmp_path / "set"


def test_the_loops_mask_is_the_assistants_turns_token_by_token(found, tokenizer):
    for trajectory in found:
        for context in trajectory.contexts:
            assert assistant_mask(tokenizer, context.token_ids) == context.loss_mask
        assert learned_outside(trajectory, tokenizer) == 0


def test_a_tool_result_that_is_learned_is_counted(found, tokenizer):
    wrong = found[0].model_copy(deep=True)
    first = wrong.context.loss_mask.index(0, wrong.context.prompt_length)
    wrong.context.loss_mask[first] = 1
    assert learned_outside(wrong, tokenizer) == 1


def test_what_was_saved_is_read_back(folder, found, tokenizer):
    verify_checkpoint(folder)
    assert (folder / "README.md").read_text() == f"card of {FILE}"
    assert read_training_set(folder / FILE, tokenizer) == (found, [])


def change(trajectory, **values):
    row = json.loads(trajectory.model_dump_json())
    for name, value in values.items():
        row["contexts"][0][name] = value(row["contexts"][0][name])
    return json.dumps(row)


@pytest.mark.parametrize("spoil, message", [
    (lambda t: t.model_dump_json()[:-40], "not JSON: invalid json: .* at character"),
    (lambda t: "", "not JSON"),
    (lambda t: '{"question": "q"}', "task_id: field required"),
    (lambda t: "[1, 2]", "the whole line: input should be an object"),
    (lambda t: change(t, token_ids=lambda ids: [*ids[:-1], "x"]), "contexts.0.token_ids.*integer"),
    (lambda t: change(t, token_ids=lambda ids: ids[:-1]), "token_ids and .* values of loss_mask"),
    (lambda t: change(t, logprobs=lambda values: values[:-1]), "token_ids and .* logprobs"),
    (lambda t: change(t, token_ids=lambda ids: [99_999, *ids[1:]]), "token id 99999"),
    (lambda t: change(t, loss_mask=lambda mask: [0] * len(mask)), "no sampled token"),
    (lambda t: change(t, loss_mask=lambda mask: [1, *mask[1:]]), "1 tokens to be learned stand outside"),
    (lambda t: change(t, loss_mask=lambda mask: [2 * m for m in mask]), "loss_mask holds 2"),
    (lambda t: t.model_copy(update={"contexts": []}).model_dump_json(), "no sampled token")])
def test_malformed_lines_are_told_by_number_and_stop_the_run(folder, found, tokenizer, spoil, message):
    lines = (folder / FILE).read_text().splitlines()
    lines[1], lines[4] = spoil(found[1]), spoil(found[4])
    (folder / FILE).write_text("\n".join(lines) + "\n")
    with pytest.raises(KitError, match=f"2 malformed lines of 6: line 2: .*{message}.*; line 5: .*skip_malformed"):
        read_training_set(folder / FILE, tokenizer)
    good, malformed = read_training_set(folder / FILE, tokenizer, skip_malformed=True)
    assert good == [found[0], found[2], found[3], found[5]]
    assert [line.partition(":")[0] for line in malformed] == ["line 2", "line 5"]


def test_a_context_that_no_agent_could_have_is_malformed(folder, found, tokenizer):
    longest = max(len(t.context.token_ids) for t in found)
    assert len(read_training_set(folder / FILE, tokenizer, longest=longest)[0]) == 6
    with pytest.raises(KitError, match=rf"line \d: {longest:,} tokens, and an agent's context has {longest - 1:,} "):
        read_training_set(folder / FILE, tokenizer, longest=longest - 1)


def test_many_malformed_lines_are_counted_not_listed(folder, tokenizer):
    (folder / FILE).write_text("no\n" * 40)
    with pytest.raises(KitError, match="40 malformed lines of 40.*line 5.*and 35 more") as caught:
        read_training_set(folder / FILE, tokenizer)
    assert "line 6" not in str(caught.value)
    with pytest.raises(KitError, match="no trajectory to learn from"):
        read_training_set(folder / FILE, tokenizer, skip_malformed=True)


def test_a_torn_last_line_is_malformed_in_a_finished_file(folder, tokenizer):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-30])
    with pytest.raises(KitError, match="line 6"):
        read_training_set(folder / FILE, tokenizer)


class Stage:
    name, seed = "04_sft", 0

    def __init__(self, profile, base):
        self.profile, self.base = profile, base

    def base_model(self):
        return self.base


def test_a_readers_own_file_is_taken(folder, smoke, micro_base, capsys):
    lines = (folder / FILE).read_text().splitlines()
    (folder / FILE).write_text("\n".join([*lines, "oops"]) + "\n")
    stage = Stage(smoke, micro_base)
    with pytest.raises(KitError, match="line 7"):
        load_trajectories(stage, str(folder / FILE))
    assert len(load_trajectories(stage, str(folder / FILE), skip_malformed=True)) == 6
    said = capsys.readouterr().out
    assert "skipped trajectories.jsonl, line 7" in said and "would drop" not in said
    (folder / FILE).write_text("\n".join([*lines, lines[0]]) + "\n")
    assert len(load_trajectories(stage, str(folder / FILE))) == 7
    assert "would drop some of these records: {'duplicate': 1}" in capsys.readouterr().out
    with pytest.raises(KitError, match="no trajectories in"):
        load_trajectories(stage, str(folder / "nowhere.jsonl"))


def test_without_notebook_03_the_oracles_records_are_made_again(smoke, micro_base, capsys):
    found = load_trajectories(Stage(smoke, micro_base))
    assert len(found) == smoke.trajectories.oracle and "notebook 03 was not run" in capsys.readouterr().out


def test_the_card_tells_counts_filters_and_hashes(found, tasks, smoke, micro_base, tmp_path):
    from huggingface_hub import DatasetCard

    spoiled = [t.model_copy() for t in found]
    spoiled[0].correct, spoiled[1].correct = False, False
    sources = {"oracle": (6, keep_good(found)), "rejection": (6, keep_good(spoiled))}
    folder = tmp_path / "set"
    save_trajectories(folder, found, lambda file: dataset_card(smoke, 0, micro_base, sources, tasks, file))
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.size_categories == "n<1K"
    assert "| oracle | 6 | 6 | 0 |" in card.text and "| rejection | 6 | 4 | 2 |" in card.text
    assert f"- `wrong`: {FILTERS['wrong']}" in card.text and "turn_limit" not in card.text
    assert file_sha256(folder / FILE) in card.text and file_sha256(micro_base / "model.safetensors") in card.text
    assert "Records by number of hops: 1: " in card.text and "worlds, 6 of" not in card.text


def test_every_reason_to_drop_has_its_why(found):
    spoiled = [t.model_copy(deep=True) for t in found[:4]]
    spoiled[0].correct = False
    spoiled[1].steps[0].status = "repeat_error"
    spoiled[2].steps = spoiled[2].steps[:2]
    spoiled.append(found[4].model_copy(deep=True))
    spoiled[4].steps[1].cut = True
    dropped = keep_good([*spoiled, found[3]]).dropped
    assert set(dropped) == {"wrong", "faulty_step", "cut_off", "too_short", "duplicate"} and set(dropped) <= set(FILTERS)


def test_padding_by_hand():
    assert padding_share([[4, 2], [3, 3]]) == pytest.approx(1 - 12 / 14)
    assert padding_share([[5]]) == 0.0


def test_a_trajectory_without_a_context_teaches_nothing(tokenizer):
    assert learned_outside(Trajectory(task_id="t", question="q"), tokenizer) == 0


def test_the_example_for_a_file_of_ones_own_is_read(tmp_path, tokenizer):
    text = (repo_root() / "data/README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace("data/models", str(repo_root() / "data/models")).replace("mine.jsonl", str(tmp_path / "mine.jsonl"))
    exec(code, {})
    [record], malformed = read_training_set(tmp_path / "mine.jsonl", tokenizer)
    assert record.task_id == "mine-1" and not malformed and sum(record.context.loss_mask) == 3  # two words, the end
