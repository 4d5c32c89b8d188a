"""Every loss on numbers worked out by hand, and its gradient against finite differences."""

import math

import pytest
import torch

from agentcpm_kit.errors import KitError
from agentcpm_kit.train.losses import (
    AGGREGATIONS,
    LOSSES,
    Staleness,
    cispo,
    clipped,
    grpo,
    gspo,
    minirl,
    reinforce,
    staleness_mask,
    token_losses,
)


def rows(*values):
    return torch.tensor([values], dtype=torch.float64)


ZEROS, ONES = rows(0, 0, 0, 0), rows(1, 1, 1, 1)
RHO, ADVANTAGES = rows(1.0, 1.5, 0.5, 0.5), rows(1.0, 1.0, -1.0, 1.0)


def test_grpo_by_hand():
    """1.5 is clipped to 1.3 where the advantage is positive; 0.5 to 0.8 where it is negative, and not where it is positive."""
    assert grpo(RHO.log(), ZEROS, ADVANTAGES, ONES).tolist() == [pytest.approx([-1.0, -1.3, 0.8, -0.5])]


def test_gspo_by_hand():
    """The ratio of the sequence is the geometric mean of its tokens': (1 x 4 x 1)^(1/3) = 1.587, clipped to 1.3 or not.

    The last token is masked, and counts neither here nor in the mean.
    """
    mask, rho = rows(1, 1, 1, 0), rows(1.0, 4.0, 1.0, 9.0)
    found = gspo(rho.log(), ZEROS, rows(1.0, 1.0, -1.0, 0.0), mask)
    assert found.tolist() == [pytest.approx([-1.3, -1.3, 4 ** (1 / 3), 0.0])]


def test_gspo_has_the_sign_of_its_paper():
    """Near rho = 1 a rewarded sequence becomes likelier: d loss / d logp = -s A, not the reference's +s A / |logp|."""
    behaviour = rows(-1.0, -2.0)
    logp = rows(-1.1, -1.9).requires_grad_()
    gspo(logp, behaviour, rows(1.0, 1.0), rows(1, 1)).sum().backward()
    assert logp.grad.tolist() == [pytest.approx([-1.0, -1.0])]  # s = exp((-0.1 + 0.1) / 2) = 1


def test_gspo_takes_each_row_by_itself():
    logp = torch.tensor([[0.0, 0.2], [-0.4, 0.0]])
    found = gspo(logp, torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2))
    assert found[:, 0].tolist() == pytest.approx([-math.exp(0.1), -math.exp(-0.2)])


def test_minirl_by_hand():
    """-sg(rho) A l: rho = e^0.5 and l = -0.5 give 0.5 e^0.5 A; not clipped, however large rho."""
    assert minirl(rows(-0.5), rows(-1.0), rows(2.0), rows(1)).item() == pytest.approx(math.exp(0.5))
    assert minirl(rows(-1.0), rows(-5.0), rows(1.0), rows(1)).item() == pytest.approx(math.exp(4))


def test_cispo_by_hand():
    """The weight is clipped at 1.3, the gradient stays: 4 -> 1.3; 0.5 is left as it is."""
    logp = rows(-1.0, -1.0).requires_grad_()
    losses = cispo(logp, rows(-1.0 - math.log(4), -1.0 - math.log(0.5)), rows(1.0, 1.0), rows(1, 1))
    assert losses.tolist() == [pytest.approx([1.3, 0.5])]
    losses.sum().backward()
    assert logp.grad.tolist() == [pytest.approx([-1.3, -0.5])]


def test_reinforce_by_hand():
    assert reinforce(rows(-0.5, -2.0), rows(-9.0, 0.0), rows(2.0, -1.0), rows(1, 1)).tolist() == [[1.0, -2.0]]


def test_staleness_bounds_are_02_and_22():
    rho = rows(2.19, 2.21, 0.21, 0.19, 2.21, 0.19)
    assert staleness_mask(rho.log(), rows(*[0] * 6), rows(1, 1, -1, -1, -1, 1)).tolist() == [[1, 0, 1, 0, 1, 1]]


def test_staleness_strict_and_decaying():
    assert Staleness(strict=True).bounds(age=7) == pytest.approx((0.8, 1.3))
    assert Staleness(decay=math.log(2)).bounds(age=1) == pytest.approx((0.6, 1.6))  # half of kappa = 4
    assert Staleness(decay=1.0).bounds(age=0) == Staleness().bounds(age=9) == pytest.approx((0.2, 2.2))
    strict = staleness_mask(rows(1.29, 1.31, 0.81, 0.79).log(), ZEROS, rows(1, 1, -1, -1), Staleness(strict=True))
    assert strict.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_on_policy_is_minus_advantage(name):
    """At rho = 1 every loss is policy gradient: d loss / d logp = -A. A wrong sign would show here."""
    logp = rows(-1.0, -2.0).requires_grad_()
    token_losses(name, logp, logp.detach(), rows(0.5, -0.25), rows(1, 1)).sum().backward()
    assert logp.grad.tolist() == [pytest.approx([-0.5, 0.25])]


def surrogate(name, at, behaviour, advantages, mask):
    """What a loss's gradient at `at` is the gradient of, as a function of log-probs: what it stops the gradient of is fixed."""
    rho = (at - behaviour).exp()
    if name == "gspo":
        ratio = (((at - behaviour) * mask).sum() / mask.sum()).exp()
        clipped = grpo(ratio.log(), torch.zeros_like(ratio), advantages, mask)  # which branch holds, at `at`
        free = clipped == -ratio * advantages
        return lambda logp: torch.where(free, -ratio * (logp - at).exp() * advantages, clipped)
    weights = {"minirl": rho, "cispo": rho.clamp(max=1.3), "reinforce": torch.ones_like(rho)}
    return {"grpo": lambda logp: grpo(logp, behaviour, advantages, mask)}.get(name) or (
        lambda logp: -weights[name] * advantages * logp)


@pytest.mark.parametrize("shift", [0.0, 0.5, -0.6])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences(name, shift):
    """Near the sampling policy; and far above and below it, where GSPO clips what has a positive or a negative advantage."""
    behaviour, advantages, mask = rows(-1.0, -1.0, -1.0, -0.5), rows(1.0, -1.0, 1.0, -0.3), ONES
    logp = (rows(-1.1, -0.9, -0.2, -0.8) + shift).requires_grad_()
    LOSSES[name](logp, behaviour, advantages, mask).sum().backward()
    function = surrogate(name, logp.detach(), behaviour, advantages, mask)
    for i in range(4):
        step = torch.zeros(1, 4, dtype=torch.float64)
        step[0, i] = 1e-6
        up, down = (function(logp.detach() + s).sum() for s in (step, -step))
        assert logp.grad[0, i].item() == pytest.approx(((up - down) / 2e-6).item(), abs=1e-5)


@pytest.mark.parametrize("shift, learned", [(0.0, [1, 1, 1, 1]), (0.5, [0, 1, 0, 1]), (-0.6, [1, 0, 1, 0])])
def test_gspo_clips_whole_sequences_by_the_sign_of_the_advantage(shift, learned):
    """The ratio of the sequence is e^0.5 > 1.3 or e^-0.6 < 0.8: what would be pushed farther has no gradient."""
    logp = rows(-1.0, -1.0, -1.0, -1.0).add(shift).requires_grad_()
    gspo(logp, rows(-1.0, -1.0, -1.0, -1.0), rows(1.0, -1.0, 1.0, -0.3), ONES).sum().backward()
    assert (logp.grad != 0).int().tolist() == [learned]


def test_what_is_masked_has_neither_loss_nor_gradient():
    for name in LOSSES:
        logp = rows(-1.0, -2.0).requires_grad_()
        losses = token_losses(name, logp, rows(-1.0, -2.0), rows(1.0, 1.0), rows(1, 0))
        assert losses[0, 1].item() == 0
        losses.sum().backward()
        assert logp.grad[0, 1].item() == 0


def test_aggregations_by_hand():
    """Two rows, of one and of three learned tokens with losses 4 and 1, 2, 3: 10/4 tokens, 10/2 rows, (4 + 2)/2."""
    losses = torch.tensor([[4.0, 9.0, 9.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = {name: aggregate(losses, mask, 4, 2).item() for name, aggregate in AGGREGATIONS.items()}
    assert found == {"token_mean": 2.5, "sequence_sum": 5.0, "sequence_mean": 3.0}


def test_aggregations_add_up_over_micro_batches():
    losses, mask = torch.rand(4, 5), torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in (1, 5, 2, 3)])
    for aggregate in AGGREGATIONS.values():
        parts = sum(aggregate(losses[i: i + 2], mask[i: i + 2], mask.sum(), 4) for i in (0, 2))
        assert parts.item() == pytest.approx(aggregate(losses, mask, mask.sum(), 4).item())


def test_clipped_by_hand():
    """Of three learned tokens one is beyond 1.3 with a positive advantage; beyond it with a negative one is no clip."""
    found = clipped(rows(1.4, 1.4, 1.0, 1.4).log(), ZEROS, rows(1, -1, 1, 1), rows(1, 1, 1, 0))
    assert found.tolist() == [[1, 0, 0, 0]]


def test_unknown_loss():
    with pytest.raises(KitError, match="grpo"):
        token_losses("grop", rows(0), rows(0), rows(0), rows(1))
