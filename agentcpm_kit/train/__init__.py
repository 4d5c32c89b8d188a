"""Training: SFT (Unsloth + TRL), merging (mergekit), reward denoising, losses, RL (TRL's GRPO on the kit's loop)."""
