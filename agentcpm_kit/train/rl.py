"""Reinforcement learning from the kit's own loop, through TRL's `GRPOTrainer`.

TRL drives (optimiser, schedule, checkpoints, resume); the kit supplies rollouts (`rollout_func`), rewards, the
denoised leave-one-out advantages and the loss. Departures from TRL's GRPO are the reference's: no KL, no division
by the deviation, advantages per step, rollouts of zero advantage left out of the update.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines import Engine, TransformersEngine, load_model, open_engine
from ..agent.episode import run_episodes, world_tools
from ..agent.trajectory import Trajectory
from ..errors import KitError
from ..evaluate.scorers import score
from ..profile import Noise, Profile, refuse_resets
from ..world import Task, make_tasks
from .denoise import DenoisedGroup, Rollout, Rules, denoise_group
from .loading import last_checkpoint
from .losses import token_losses, token_mean
from .noise import CLEAN, fault_plan, judge

MICRO_BATCH = 16  # rollouts per forward and backward pass; bounds memory, changes nothing else
OnStep = Callable[[int, dict], None]
Evaluate = Callable[[Engine], float]


@dataclass(frozen=True)
class Arm:
    """One side of the comparison. Arms differ in noise and rules, in nothing else."""

    name: str
    noise: Noise
    rules: Rules


def arms(noise: Noise) -> dict[str, Arm]:
    """Clean rewards, noisy rewards taken as they come, and the same noisy rewards denoised.

    All three clip signs and cap bad steps, which belong to the reference's advantages (section 10), not to its
    dropping of noise.
    """
    plain = Rules(variance_gate=False, drop_faults=False, drop_short=False, drop_limits=False)
    return {"clean": Arm("clean", CLEAN, plain), "noisy": Arm("noisy", noise, plain),
            "denoised": Arm("denoised", noise, Rules())}


@dataclass
class Update:
    """Rollouts of one step with what the rules made of them."""

    trajectories: list[Trajectory]
    rewards: list[float | None]
    groups: list[DenoisedGroup]
    group_size: int

    def token_advantages(self, i: int) -> list[float]:
        """Advantage of each token after the prompt: that of the step that sampled it, 0 on tool results."""
        trajectory, steps = self.trajectories[i], self.groups[i // self.group_size].step_advantages[i % self.group_size]
        values, step, previous = [], -1, 0
        for learned in trajectory.context.loss_mask[trajectory.context.prompt_length:]:
            step += learned and not previous
            values.append(steps[step] if learned else 0.0)
            previous = learned
        return values

    def summary(self) -> dict:
        rewarded = [r for r in self.rewards if r is not None]
        rules = Counter(rule for group in self.groups for rule in group.dropped.values())
        correct = [t.correct for t in self.trajectories if t.correct is not None]
        count = len(self.trajectories)
        return {"reward": sum(rewarded) / max(1, len(rewarded)), "success": sum(correct) / max(1, len(correct)),
                "fault_share": sum(t.correct is None for t in self.trajectories) / count,
                "turns": sum(t.turns for t in self.trajectories) / count,
                "dropped": dict(rules), "end_reasons": dict(Counter(t.end_reason.value for t in self.trajectories))}


def rl_tasks(profile: Profile) -> list[Task]:
    """Questions for RL: training worlds at RL's own hops and contamination, enough for every step to see new ones."""
    rl, world = profile.rl, profile.world
    count = -(-rl.steps * rl.questions_per_step // len(rl.hops))
    groups = [make_tasks("train", count, h, world.train_worlds, world.entities, rl.redundancy, seed=2) for h in rl.hops]
    return [task for group in zip(*groups, strict=True) for task in group]


def collect(tasks: list[Task], engine: Engine, profile: Profile, arm: Arm, seed: int, step: int) -> Update:
    """Roll out `tasks` (each question `group_size` times in a row), judge and denoise."""
    size = profile.rl.group_size
    found = run_episodes(tasks, engine, world_tools(fault_plan(arm.noise)), profile.limits, ContextPolicy.of(profile),
                         seed, step)
    for trajectory, task in zip(found, tasks, strict=True):
        score(trajectory, task)
    # The same stream of draws in every arm with noise, so that denoising alone tells noisy from denoised.
    rng = random.Random(f"judge {seed} {step}")
    rewards = [judge(t, arm.noise, rng) for t in found]
    rollouts = [Rollout.of(t, r) for t, r in zip(found, rewards, strict=True)]
    groups = [denoise_group(rollouts[i: i + size], arm.rules) for i in range(0, len(rollouts), size)]
    return Update(found, rewards, groups, size)


def train_rl(model: Path, tasks: list[Task], profile: Profile, out: Path, arm: Arm, seed: int = 0,
             evaluate: Evaluate | None = None, on_step: OnStep | None = None) -> Path:
    """Train `model` on `tasks` for the profile's number of steps, and save it in `out`.

    Checkpoints (weights, optimiser, RNG, position in the data) go to ``<out>-trainer`` and are taken up again.
    `evaluate` is called with a greedy engine every `eval_every` steps; its value is logged as ``validation``.

    Raises:
        KitError: the policy collapsed (NaN loss), or the profile's engine or context policy is none for RL.
    """
    from transformers import PrinterCallback

    from ..artefacts import write_checksums

    refuse_resets(profile)
    loaded, tokenizer = load_model(model, profile.model.dtype)
    work = Path(f"{out}-trainer")
    with _rollout_engine(model, loaded, tokenizer, profile) as engine:
        trainer = _trainer_class()(loaded, tokenizer, tasks, profile, work, arm, seed, engine)
        trainer.remove_callback(PrinterCallback)  # each step is logged by `on_step`
        trainer.add_callback(_watch(trainer, profile, evaluate, on_step))
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
    out.mkdir(parents=True, exist_ok=True)
    trainer.model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    write_checksums(out)
    return out


def _rollout_engine(path: Path, model, tokenizer, profile: Profile) -> Engine:
    """The engine of the rollouts: over the very model that is trained, or vLLM, which gets new weights before each step.

    Raises:
        KitError: the engine's weights cannot be changed from here.
    """
    if profile.model.engine == "openai":
        raise KitError("RL changes the model's weights, which servers do not take; set `engine: vllm` under `model`")
    if profile.model.engine == "vllm":
        return open_engine(path, profile, profile.rl.temperature)
    return TransformersEngine(model, tokenizer, profile.rl.temperature, profile.evaluation.batch_size)


def _config(profile: Profile, work: Path, seed: int):
    from trl import GRPOConfig

    rl = profile.rl
    rollouts = rl.questions_per_step * rl.group_size
    accumulation = max(1, rollouts // MICRO_BATCH)
    return GRPOConfig(
        output_dir=str(work), max_steps=rl.steps, learning_rate=rl.learning_rate, lr_scheduler_type="constant",
        per_device_train_batch_size=rollouts // accumulation, gradient_accumulation_steps=accumulation,
        num_generations=rl.group_size, max_completion_length=profile.limits.max_context_tokens, beta=0.0,
        scale_rewards="none", max_grad_norm=1.0, weight_decay=0.0, logging_steps=1, save_steps=rl.save_every, save_total_limit=1,
        logging_nan_inf_filter=False,  # its default replaces a NaN by the mean of earlier losses
        seed=seed, report_to=[], disable_tqdm=True, bf16=profile.model.dtype == "bfloat16", gradient_checkpointing=False,
        use_cpu=profile.machine.gpu_memory_gb == 0, shuffle_dataset=True, remove_unused_columns=False)


def _trainer_class():
    """The trainer, made when first needed: importing TRL takes seconds."""
    import os

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from datasets import Dataset
    from trl import GRPOTrainer

    class AgentGRPOTrainer(GRPOTrainer):
        """`GRPOTrainer` whose prompts are task ids, and whose rollouts, advantages and loss are the kit's."""

        def __init__(self, model, tokenizer, tasks, profile, work, arm, seed, engine):
            self.tasks = {task.task_id: task for task in tasks}
            self.kit, self.arm, self.rollout_seed = profile, arm, seed
            self.engine = engine
            self.update: Update | None = None
            dataset = Dataset.from_list([{"prompt": task_id} for task_id in self.tasks])
            super().__init__(model=model, reward_funcs=_rewards, args=_config(profile, work, seed),
                             train_dataset=dataset, processing_class=tokenizer, rollout_func=self.rollout)

        def rollout(self, prompts: list[str], trainer) -> dict:
            tasks = [self.tasks[p] for p in prompts]
            if self.kit.model.engine == "vllm":
                self.engine.load_weights(self.accelerator.unwrap_model(self.model))
            self.update = collect(tasks, self.engine, self.kit, self.arm, self.rollout_seed, self.state.global_step)
            contexts = [t.context for t in self.update.trajectories]
            return {"prompt_ids": [c.token_ids[: c.prompt_length] for c in contexts],
                    "completion_ids": [c.token_ids[c.prompt_length:] for c in contexts],
                    "logprobs": [c.logprobs[c.prompt_length:] for c in contexts],
                    "env_mask": [c.loss_mask[c.prompt_length:] for c in contexts],
                    "kit_reward": [0.0 if r is None else r for r in self.update.rewards]}

        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            assert_sampled_tokens(batch, self.update.trajectories)
            width = batch["completion_ids"].shape[1]
            rows = [self.update.token_advantages(i) for i in range(len(self.update.trajectories))]
            batch["advantages"] = torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
            return _without_idle_rows(batch, self.args.steps_per_generation)

        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            """Plain log-softmax: TRL 1.15's fused head needs triton, which a CPU does not have."""
            logits = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1).logits
            logprobs = torch.log_softmax(logits[:, :-1].float() / self.kit.rl.temperature, -1)
            chosen = logprobs.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]
            return chosen, -(logprobs.exp() * logprobs).sum(-1), None

        def _compute_loss(self, model, inputs):
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            real = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            width = inputs["completion_ids"].shape[1]
            logp, entropy, _ = self._get_per_token_logps_and_entropies(model, ids, real, width)
            mask = inputs["completion_mask"] * inputs["tool_mask"]
            behaviour, advantages = inputs["sampling_per_token_logps"], inputs["advantages"]
            losses = token_losses(self.kit.rl.loss, logp, behaviour, advantages)
            self._log_metric_values(logp, behaviour, entropy, mask)
            return token_mean(losses, mask, inputs["num_items_in_batch"])

        def _log_metric_values(self, logp, behaviour, entropy, mask):
            with torch.no_grad():
                count = mask.sum().clamp(min=1)
                self._metrics["train"]["entropy"].append(((entropy * mask).sum() / count).item())
                gap = ((logp - behaviour).abs() * mask).sum() / count
                self._metrics["train"]["policy_gap"].append(gap.item())

    return AgentGRPOTrainer


def assert_sampled_tokens(batch: dict, trajectories: list[Trajectory]) -> None:
    """Every token that a batch trains on is the one that was sampled, at its place and with its log-probability.

    Raises:
        KitError: TRL cut, moved or tokenised anew, ids were made from text, or an episode has several contexts.
    """
    for row, trajectory in enumerate(trajectories):
        if not trajectory.exact or len(trajectory.contexts) != 1:
            raise KitError(f"RL needs the sampled ids in one context; episode {trajectory.episode} has "
                           f"{len(trajectory.contexts)} contexts, exact ids: {trajectory.exact}")
        context, size = trajectory.context, len(trajectory.context.token_ids) - trajectory.context.prompt_length
        real, ids = batch["completion_mask"][row], batch["completion_ids"][row][:size].tolist()
        trained = (real * batch["tool_mask"][row]).bool().tolist()
        gaps = [abs(a - b) for a, b, t in zip(batch["sampling_per_token_logps"][row].tolist(), context.logprobs[-size:], trained,
                                              strict=False) if t] if size else []
        mask = context.loss_mask[context.prompt_length:]
        if not (int(real.sum()) == size and ids == context.token_ids[context.prompt_length:]
                and trained == [bool(m) for m in mask] + [False] * (len(trained) - size)
                and all(gap <= 1e-4 for gap in gaps)):  # also false where a log-prob is no number
            raise KitError(f"episode {trajectory.episode}: the tokens to train on are not those that were sampled")


def _rewards(prompts, completions, kit_reward, **kwargs) -> list[float]:
    """What TRL logs as reward; advantages are computed from the update itself."""
    return kit_reward


def _without_idle_rows(batch: dict, chunks: int) -> dict:
    """Drop rollouts without any advantage: they cost a pass and give no gradient. Keeps a multiple of `chunks` rows."""
    import torch

    active = (batch["advantages"] != 0).any(1)
    keep = torch.cat([active.nonzero()[:, 0], (~active).nonzero()[:, 0]])
    keep = keep[: max(1, -(-int(active.sum()) // chunks)) * chunks]
    batch = {k: v[keep] if isinstance(v, torch.Tensor) and v.dim() and len(v) == len(active) else v
             for k, v in batch.items()}
    learned = (batch["completion_mask"] * batch["tool_mask"] * (batch["advantages"] != 0)).sum()
    batch["tool_mask"] = batch["tool_mask"] * (batch["advantages"] != 0)
    batch["num_items_in_batch"] = learned.clamp(min=1)
    return batch


def _watch(trainer, profile: Profile, evaluate: Evaluate | None, on_step: OnStep | None):
    """Callback: logs each step, evaluates now and then, stops a run whose loss is no longer a number."""
    import math

    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = logs or {}
            if "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise KitError(f"RL stopped: the loss is {logs['loss']} at step {state.global_step}; lower rl.learning_rate")
            row = {k: logs[k] for k in ("loss", "entropy", "policy_gap", "grad_norm") if k in logs}
            row |= trainer.update.summary()
            if evaluate and (state.global_step % profile.rl.eval_every == 0 or state.global_step == state.max_steps):
                greedy = TransformersEngine(trainer.model, trainer.engine.tokenizer, 0.0, trainer.engine.batch_size)
                row["validation"] = evaluate(greedy)
            if on_step:
                on_step(state.global_step, row)

    return Watch()
