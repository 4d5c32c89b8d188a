"""Policy-gradient losses as pure functions of log-probs, behaviour log-probs, advantages and mask, all of shape [B, T].

Notation: l_t is the policy's log-prob of a sampled token, l'_t that of the policy which
sampled it, rho_t = exp(l_t - l'_t), A_t its advantage, m_t 1 where it is learned from, sg the stop-gradient.
eps = 0.2, eps_h = 0.1 and kappa = 4 are the reference's. Every loss is minimised, and at rho = 1 each one's gradient with
respect to l_t is -A_t: plain policy gradient. They differ in what happens once the policy has moved on.
"""

from dataclasses import dataclass

from ..errors import unknown

EPS, EPS_HIGH = 0.2, 0.1


@dataclass(frozen=True)
class Staleness:
    """How far the policy may have moved from the one that sampled before a token is left out (the reference's `arl.py`)."""

    kappa: float = 4.0  # `importance_weight_cap_ratio`
    strict: bool = False  # `strict_in_bound`: the clip's own bounds, [0.8, 1.3], whatever kappa
    decay: float = 0.0  # `out_of_date_decay`, lambda: bounds narrow by exp(-lambda) per step of age

    def bounds(self, age: float = 0) -> tuple[float, float]:
        """(L, U) for tokens sampled `age` steps ago: U = 1 + (eps + eps_h) kappa d, L = 1 - eps kappa d.

        d is 1/kappa where strict, else exp(-age lambda). By default [0.2, 2.2].
        """
        import math

        reach = 1.0 if self.strict else self.kappa * math.exp(-max(0, age) * self.decay)
        return 1 - EPS * reach, 1 + (EPS + EPS_HIGH) * reach


def staleness_mask(logp, behaviour, advantages, staleness: Staleness = Staleness(), age: float = 0):  # noqa: B008
    """1.0 where a token may still be learned from: not where rho > U with A > 0, nor where rho < L with A < 0.

    The reference has it for all of its losses, and so have all here. A token that it leaves out still counts in the
    denominators of the aggregations, which are known before the policy's log-probs are: a departure from the reference.
    """
    low, high = staleness.bounds(age)
    rho = (logp - behaviour).exp().detach()
    return (~((rho > high) & (advantages > 0) | (rho < low) & (advantages < 0))).to(logp.dtype)


def grpo(logp, behaviour, advantages, mask):
    """-min(rho A, clip(rho, 1 - eps, 1 + eps + eps_h) A), as the reference has it; DAPO's higher upper bound."""
    return _clipped((logp - behaviour).exp(), advantages)


def gspo(logp, behaviour, advantages, mask):
    """GRPO with the ratio of the whole sequence (GSPO, arXiv 2507.18071, its token form).

    s = exp(sum m (l - l') / sum m) per row; rho_t is replaced by sg(s) exp(l_t - sg(l_t)), whose value is s and whose
    gradient reaches l_t. The reference writes l_t / sg(l_t) in place of the exponential: a log-prob is negative, so that
    its gradient has the wrong sign.
    """
    mean_gap = ((logp - behaviour) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return _clipped(mean_gap.exp().detach() * (logp - logp.detach()).exp(), advantages)


def minirl(logp, behaviour, advantages, mask):
    """-sg(rho) A l: no clipping, only the staleness mask bounds it (the reference's MINIRL)."""
    return -(logp - behaviour).exp().detach() * advantages * logp


def cispo(logp, behaviour, advantages, mask):
    """-sg(min(rho, 1 + eps + eps_h)) A l: weights are clipped from above, gradients are not (MiniMax-M1, arXiv 2506.13585).

    Named in the reference's docs and absent from its code. The bound is GRPO's, and the staleness mask, which MiniMax-M1
    has not, leaves tokens out all the same: our assumptions.
    """
    return -(logp - behaviour).exp().detach().clamp(max=1 + EPS + EPS_HIGH) * advantages * logp


def reinforce(logp, behaviour, advantages, mask):
    """-A l (Williams 1992): takes every token that the staleness mask leaves as if the present policy had sampled it."""
    return -advantages * logp


def _clipped(rho, advantages):
    return -(rho * advantages).minimum(rho.clamp(1 - EPS, 1 + EPS + EPS_HIGH) * advantages)


LOSSES = {"grpo": grpo, "gspo": gspo, "minirl": minirl, "cispo": cispo, "reinforce": reinforce}


def clipped(logp, behaviour, advantages, mask):
    """1 where a learned token lies beyond a bound of GRPO's clip in the direction of its advantage, else 0."""
    rho = (logp - behaviour).exp()
    return ((rho > 1 + EPS + EPS_HIGH) & (advantages > 0) | (rho < 1 - EPS) & (advantages < 0)) * mask


def token_losses(name: str, logp, behaviour, advantages, mask, staleness: Staleness = Staleness(), age: float = 0):  # noqa: B008
    """Per-token loss [B, T], 0 where the mask or staleness leave a token out.

    Raises:
        KitError: unknown loss.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    fresh = staleness_mask(logp, behaviour, advantages, staleness, age)
    return LOSSES[name](logp, behaviour, advantages, mask * fresh) * fresh * mask


def token_mean(losses, mask, tokens, rows):
    """Sum of m loss / `tokens`, the learned tokens of the whole update (`token_level_loss`): long rows weigh more."""
    return (losses * mask).sum() / tokens


def sequence_sum(losses, mask, tokens, rows):
    """Mean over the update's `rows` of the sum of m loss (`skip_length_normalization`): lengths are not averaged out."""
    return (losses * mask).sum() / rows


def sequence_mean(losses, mask, tokens, rows):
    """Mean over the update's `rows` of the mean of m loss in each: every row weighs as much, however long."""
    return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1)).sum() / rows


AGGREGATIONS = {"token_mean": token_mean, "sequence_sum": sequence_sum, "sequence_mean": sequence_mean}
