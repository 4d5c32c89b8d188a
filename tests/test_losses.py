import pytest
import torch

from agentcpm_kit.errors import KitError
from agentcpm_kit.train.losses import LOSSES, grpo, minirl, staleness_mask, token_losses, token_mean


def rows(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_grpo_by_hand():
    rho, advantage = rows(1.0, 1.5, 0.5, 0.5), rows(1.0, 1.0, -1.0, 1.0)
    assert grpo(rho.log(), rows(0, 0, 0, 0), advantage).tolist() == [pytest.approx([-1.0, -1.3, 0.8, -0.5])]


def test_minirl_by_hand():
    logp = rows(-0.5)
    assert minirl(logp, logp, rows(2.0)).item() == pytest.approx(1.0)


def test_staleness_bounds_are_02_and_22():
    rho = rows(2.19, 2.21, 0.21, 0.19, 2.21, 0.19)
    assert staleness_mask(rho.log(), rows(*[0] * 6), rows(1, 1, -1, -1, -1, 1)).tolist() == [[1, 0, 1, 0, 1, 1]]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_on_policy_is_minus_advantage(name):
    """At rho = 1 every loss is policy gradient: d loss / d logp = -A. A wrong sign would show here."""
    logp = rows(-1.0, -2.0).requires_grad_()
    token_losses(name, logp, logp.detach(), rows(0.5, -0.25)).sum().backward()
    assert logp.grad.tolist() == [pytest.approx([-0.5, 0.25])]


def test_grpo_gradient_by_finite_differences():
    behaviour, advantage = rows(-1.0, -1.0, -1.0), rows(1.0, -1.0, 1.0)
    logp = rows(-1.1, -0.9, -0.2).requires_grad_()
    grpo(logp, behaviour, advantage).sum().backward()
    for i in range(3):
        step = torch.zeros(1, 3, dtype=torch.float64)
        step[0, i] = 1e-6
        up, down = (grpo(logp.detach() + s, behaviour, advantage).sum() for s in (step, -step))
        assert logp.grad[0, i].item() == pytest.approx(((up - down) / 2e-6).item(), abs=1e-5)


def test_token_mean_ignores_masked_tokens():
    assert token_mean(rows(1.0, 5.0), rows(1.0, 0.0), 2).item() == 0.5


def test_unknown_loss():
    with pytest.raises(KitError, match="grpo"):
        token_losses("grop", rows(0), rows(0), rows(0))
