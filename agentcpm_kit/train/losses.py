"""Policy-gradient losses as pure functions of log-probs, behaviour log-probs and advantages, all of shape [B, T].

With rho = exp(logp - behaviour), eps = 0.2, eps_h = 0.1, kappa = 4 (reference_system, section 11):

- GRPO    loss_t = -min(rho A, clip(rho, 1 - eps, 1 + eps + eps_h) A)
- MINIRL  loss_t = -sg(rho) A logp, which has no clipping: only the staleness mask bounds it

`token_mean` is the reference's ``token_level_loss``.
"""

from ..errors import unknown

EPS, EPS_HIGH, KAPPA = 0.2, 0.1, 4.0


def staleness_mask(logp, behaviour, advantages, kappa: float = KAPPA):
    """1.0 where a token may still be learned from; 0.0 where the policy has moved too far in the wrong direction.

    rho > 1 + (eps + eps_h) kappa with A > 0, or rho < 1 - eps kappa with A < 0, is masked: bounds [0.2, 2.2].
    """
    rho = (logp - behaviour).exp().detach()
    too_high = (rho > 1 + (EPS + EPS_HIGH) * kappa) & (advantages > 0)
    too_low = (rho < 1 - EPS * kappa) & (advantages < 0)
    return (~(too_high | too_low)).to(logp.dtype)


def grpo(logp, behaviour, advantages):
    rho = (logp - behaviour).exp()
    clipped = rho.clamp(1 - EPS, 1 + EPS + EPS_HIGH)
    return -(rho * advantages).minimum(clipped * advantages)


def minirl(logp, behaviour, advantages):
    rho = (logp - behaviour).exp().detach()
    return -rho * advantages * logp


LOSSES = {"grpo": grpo, "minirl": minirl}


def token_losses(name: str, logp, behaviour, advantages):
    """Per-token loss [B, T] with the staleness mask applied.

    Raises:
        KitError: unknown loss.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name](logp, behaviour, advantages) * staleness_mask(logp, behaviour, advantages)


def token_mean(losses, mask, count):
    """Sum over learned tokens divided by `count`, the number of learned tokens in the whole update."""
    return (losses * mask).sum() / count
