"""TRL's `GRPOTrainer` with the kit's rollouts, advantages and losses in the places of its own.

Synchronous: rollouts, then one update from them. Asynchronous, one step off: while step t trains, a thread plays the
rollouts of step t + 1 with the policy that step t began with, so that they are one step old when they are learned from. What
is played depends on weights and seeds alone, not on the thread's timing: a run repeats itself in both modes.
"""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from ..errors import KitError
from .loading import rows_at_once, without_adapter
from .losses import AGGREGATIONS, Staleness, clipped, token_losses
from .rl_batch import assert_sampled_tokens, columns, in_length_chunks, without_idle_rows
from .rollouts import Update, fill, load_update, save_update


class Rollouts:
    """The update of each step, in order: collected when it is asked for, or in a thread one step ahead."""

    def __init__(self, tasks: list, engine, profile, arm, seed: int):
        self.tasks, self.engine, self.profile, self.arm, self.seed = tasks, engine, profile, arm, seed
        self.version: int | None = None  # steps that the weights which the engine holds have learned
        self.ahead: Future | None = None
        self.thread = ThreadPoolExecutor(1, "rollouts") if profile.rl.asynchronous else None

    def take(self, step: int, model) -> Update:
        """The rollouts that `step` learns from; `model` is the newest policy."""
        ahead, self.ahead = self.ahead, None
        update = ahead.result() if ahead else None
        if update is None or self.thread:
            self.renew(model, step)
        update = update or self._collect(step, step)
        if self.thread and step + 1 < self.profile.rl.steps:
            self.ahead = self.thread.submit(self._collect, step + 1, step)
        return update

    def renew(self, model, version: int) -> None:
        """Give the engine the newest weights; one that plays with the very model that is trained has them."""
        if getattr(self.engine, "model", None) is not model and version != self.version:
            self.engine.load_weights(without_adapter(model))
        self.version = version

    def _collect(self, step: int, version: int) -> Update:
        return fill(self.tasks, self.engine, self.profile, self.arm, self.seed, step, version)

    def save(self, folder: Path) -> None:
        """Keep what was played ahead, if anything was."""
        if self.ahead:
            save_update(self.ahead.result(), folder)

    def load(self, folder: Path) -> None:
        """Take up what was played ahead; a synchronous run plays its own."""
        if self.thread and (update := load_update(folder, self.arm.rules, self.profile.rl.group_size)):
            self.ahead = Future()
            self.ahead.set_result(update)

    def close(self) -> None:
        """Wait for what is under way: the engine is closed next."""
        if self.thread:
            self.thread.shutdown(wait=True, cancel_futures=True)


@cache
def trainer_class():
    """The trainer, made when first needed: importing TRL takes seconds."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from datasets import Dataset
    from trl import GRPOTrainer

    class AgentGRPOTrainer(GRPOTrainer):
        """`GRPOTrainer` whose prompts are task ids, and whose rollouts, advantages and loss are the kit's."""

        def __init__(self, model, tokenizer, tasks, profile, config, arm, seed, engine, start):
            self.kit, self.start = profile, start
            self.rollouts = Rollouts(tasks, engine, profile, arm, seed)
            self.update: Update | None = None
            self.drift: float | None = None
            self.begin_sums()
            dataset = Dataset.from_list([{"prompt": task.task_id} for task in tasks])
            super().__init__(model=model, reward_funcs=_rewards, args=config, train_dataset=dataset, processing_class=tokenizer,
                             rollout_func=self.rollout)

        def begin_sums(self) -> None:
            """Seconds of the step under way, and sums over the tokens that it learns from."""
            self.seconds = {"train_s": 0.0}
            self.sums = dict.fromkeys(("tokens", "policy_gap", "clip_share"), 0.0)

        def take_up(self, checkpoint: str | None) -> str | None:
            if checkpoint:
                self.rollouts.load(Path(checkpoint))
            return checkpoint

        def train(self, *arguments, **options):
            try:
                return super().train(*arguments, **options)
            finally:
                self.rollouts.close()

        def rollout(self, prompts: list[str], trainer) -> dict:
            step, started = self.state.global_step, time.perf_counter()
            self.update = self.rollouts.take(step, self.accelerator.unwrap_model(self.model))
            self.seconds |= self.update.seconds | {"wait_s": time.perf_counter() - started}
            if prompts != [t.task_id for t in self.update.trajectories[: len(prompts)]]:
                raise KitError(f"step {step}: what was played answers other questions than the trainer asks")
            self.rows = self.update.rows(len(prompts), self.kit.rl.rows_per_update)
            self.summary = self.update.summary() | {"learned": sum(map(self.update.is_active, self.rows))}
            seen = {"entropy": self.summary["entropy"], "rewarded": any(self.update.rewards), "learned": self.summary["learned"]}
            for name, value in seen.items():
                self._metrics["train"][name].append(float(value))
            rewards = [self.update.rewards[i] or 0.0 for i in self.rows]
            return columns(self.batch, self.processing_class.pad_token_id) | {"kit_reward": rewards}

        @property
        def batch(self) -> list:
            """The trajectories of the trainer's rows."""
            return [self.update.trajectories[i] for i in self.rows]

        def _prepare_inputs(self, generation_batch):
            """TRL's own shuffles rows at random and pads all to the longest; these are chunks of like length."""
            chunks = self.args.steps_per_generation
            if self._step % chunks == 0:
                self._buffered_inputs = in_length_chunks(self._generate_and_score_completions(generation_batch), chunks)
            return self._buffered_inputs[self._step % chunks]

        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            assert_sampled_tokens(batch, self.batch)
            started = time.perf_counter()
            self.drift = self._distance_to_start(batch)
            self.seconds["kl_s"] = time.perf_counter() - started
            width = batch["completion_ids"].shape[1]
            rows = [self.update.token_advantages(i) for i in self.rows]
            batch["advantages"] = torch.tensor([row + [0.0] * (width - len(row)) for row in rows],
                                               device=batch["completion_ids"].device)
            return without_idle_rows(batch, self.args.steps_per_generation)

        def _distance_to_start(self, batch) -> float | None:
            """KL to the start, nats per token, on some rollouts: the mean of exp(d) - 1 - d, d = l_start - l' (Schulman's k3)."""
            if not self.kit.rl.kl_rollouts:
                return None
            rows = torch.arange(0, len(batch["advantages"]), max(1, len(batch["advantages"]) // self.kit.rl.kl_rollouts))
            some = {k: v[rows] for k, v in batch.items() if isinstance(v, torch.Tensor) and v.dim() == 2}
            passes = len(rows) // rows_at_once(len(rows), self.kit)
            return float(torch.cat([self._distances(chunk) for chunk in in_length_chunks(some, passes)]).mean())

        def _distances(self, rows):
            """Of each sampled token of some rows."""
            mask = (rows["completion_mask"] * rows["tool_mask"]).bool()
            with torch.no_grad():
                gap = self.sampled_logprobs(self._start_model(), rows, mask) - rows["sampling_per_token_logps"]
            return (gap.exp() - 1 - gap)[mask]

        def _start_model(self):
            from ..agent.engines import load_model

            if isinstance(self.start, Path):
                self.start = load_model(self.start, self.kit.model.dtype)[0].to(self.accelerator.device).eval()
            return self.start

        def sampled_logprobs(self, model, inputs, mask):
            """Log-probs of the sampled tokens [B, T], 0 elsewhere: the head sees no other position.

            In place of TRL 1.15's fused head, which needs triton.
            """
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            real = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            hidden = model.get_decoder()(input_ids=ids, attention_mask=real).last_hidden_state
            before = hidden[:, -mask.shape[1] - 1: -1][mask]  # what stands before each sampled token
            logits = model.get_output_embeddings()(before).float() / self.kit.rl.temperature
            logprobs = torch.log_softmax(logits, -1)
            chosen = logprobs.gather(-1, inputs["completion_ids"][mask][:, None])[:, 0]
            return torch.zeros(mask.shape, device=chosen.device).masked_scatter(mask, chosen)

        def training_step(self, *arguments, **options):
            loss = super().training_step(*arguments, **options)
            self.seconds["train_s"] += time.perf_counter() - self.began
            return loss

        def _compute_loss(self, model, inputs):
            self.began = time.perf_counter()  # after the rollouts
            rl, behaviour, advantages = self.kit.rl, inputs["sampling_per_token_logps"], inputs["advantages"]
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            if self.summary["learned"] and not mask.any():  # idle rows alone, beside passes that learn
                return next(p for p in model.parameters() if p.requires_grad).sum() * 0.0
            logp = self.sampled_logprobs(self.accelerator.unwrap_model(model), inputs, mask)
            behaviour = torch.where(mask, behaviour, torch.zeros_like(behaviour))
            staleness = Staleness(rl.importance_weight_cap_ratio, rl.strict_in_bound, rl.out_of_date_decay)
            losses = token_losses(rl.loss, logp, behaviour, advantages, mask, staleness, self.age)
            self._add_up(logp.detach(), behaviour, advantages, mask)
            return AGGREGATIONS[rl.aggregation](losses, mask, inputs["num_items_in_batch"], inputs["rows_in_batch"])

        @property
        def age(self) -> int:
            """How many steps the policy has learned since it sampled what it learns from now."""
            return self.state.global_step - self.update.version

        def _add_up(self, logp, behaviour, advantages, mask):
            self.sums["tokens"] += mask.sum().item()
            self.sums["policy_gap"] += ((logp - behaviour).abs() * mask).sum().item()
            self.sums["clip_share"] += clipped(logp, behaviour, advantages, mask).sum().item()

        def _save_checkpoint(self, model, trial):
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            self.rollouts.save(folder)  # first: a checkpoint counts as whole once the trainer's own last file is there
            super()._save_checkpoint(model, trial)

    return AgentGRPOTrainer


def _rewards(prompts, completions, kit_reward, **kwargs) -> list[float]:
    """What TRL logs as reward; advantages are computed from the update itself."""
    return kit_reward
