"""Tracking: rows.jsonl always, Weights & Biases beside it.

W&B runs offline unless the user is logged in (``WANDB_API_KEY`` or a netrc entry) or sets ``WANDB_MODE``; then
``wandb sync <folder>/wandb/offline-run-*`` uploads it later. ``AGENTCPM_KIT_WANDB=0`` leaves it out.
"""

import netrc
import os

QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_CODE": "true",
         "WANDB_DISABLE_GIT": "true", "WANDB_CONSOLE": "off"}
LOGIN_TIMEOUT = 15  # seconds for an online run to start; W&B's own 90 would stall every stage where the network is down


def wandb_mode() -> str:
    """`online` only for a user who has logged in: nothing touches the network by default."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        return "online" if netrc.netrc().authenticators("api.wandb.ai") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


class Tracker:
    """Curves of one stage. A W&B that is missing or fails costs one printed line, never the run."""

    def __init__(self, stage):
        self.stage, self.run = stage, None
        if os.environ.get("AGENTCPM_KIT_WANDB", "1") != "0":
            self.run = self._attempt(self._start, mode := wandb_mode())
            if not self.run and mode == "online":
                print("W&B goes on offline; `wandb sync` uploads the run later")
                self.run = self._attempt(self._start, "offline")

    def _start(self, mode: str):
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        import wandb

        stage = self.stage
        quiet = wandb.Settings(x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, host="kit",
                               console="off", silent=True, root_dir=str(stage.folder), init_timeout=LOGIN_TIMEOUT)
        return wandb.init(project="agentcpm-kit", name=f"{stage.profile.name}-seed{stage.seed}-{stage.name}",
                          group=stage.profile.name, dir=str(stage.folder), mode=mode, settings=quiet,
                          config={"seed": stage.seed, **stage.params, "profile": stage.profile.model_dump()})

    def _attempt(self, action, *arguments):
        try:
            return action(*arguments)
        except Exception as error:  # W&B raises many kinds; none may end a run
            print(f"W&B is left out: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            self.run = None

    def log(self, step: int, curve: str = "", **values) -> None:
        """One point of a curve: a row of kind "step", and the numbers among `values` to W&B."""
        self.stage.row("step", curve=curve, step=step, **values)
        numbers = {f"{curve}/{k}" if curve else k: v for k, v in values.items() if isinstance(v, (int, float))}
        if self.run:
            self._attempt(self.run.log, numbers | {f"{curve}/step" if curve else "step": step})

    def finish(self, metrics: dict) -> None:
        if self.run:
            self._attempt(self.run.summary.update, {name: m["value"] for name, m in metrics.items()})
            self._attempt(self.run.finish)
