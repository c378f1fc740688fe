import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.losses.adversarial import bce_fake, bce_real, class_cross_entropy

# sigmoid(ln 3) = 3/4
LN3 = math.log(3)


def test_logits_of_zero_cost_the_logarithm_of_two():
    assert bce_real(torch.zeros(4)) == pytest.approx(math.log(2))
    assert bce_fake(torch.zeros(4)) == pytest.approx(math.log(2))


def test_worked_values():
    assert bce_real(torch.tensor([LN3])) == pytest.approx(-math.log(3 / 4))
    assert bce_fake(torch.tensor([LN3])) == pytest.approx(-math.log(1 / 4))
    assert bce_real(torch.tensor([LN3, 0.0])) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)  # a mean


def test_patches_are_averaged_like_images():
    logits = torch.randn(3, 4, 5)
    assert bce_real(logits) == pytest.approx(bce_real(logits.flatten()).item(), rel=1e-6)
    assert bce_fake(logits) == pytest.approx(bce_fake(logits.flatten()).item(), rel=1e-6)


@given(st.floats(-30, 30))
def test_fake_is_real_with_the_opposite_sign(logit):
    assert bce_real(torch.tensor([logit])) == pytest.approx(bce_fake(torch.tensor([-logit])).item())


def test_extreme_logits_stay_finite_and_keep_their_gradient():
    logits = torch.tensor([-1000.0], requires_grad=True)
    value = bce_real(logits)
    value.backward()
    assert value == 1000
    assert logits.grad == -1
    assert bce_fake(torch.tensor([1000.0])) == 1000
    assert bce_real(torch.tensor([1000.0])) == 0


@pytest.mark.parametrize("loss", [bce_real, bce_fake])
def test_half_precision_logits_are_taken_to_fp32(loss):
    logits = torch.tensor([2.0, -3.0, 0.5], dtype=torch.bfloat16)
    assert loss(logits).dtype == torch.float32
    assert loss(logits) == pytest.approx(loss(logits.float()).item(), rel=1e-7)


def test_class_cross_entropy_by_hand():
    assert class_cross_entropy(torch.zeros(2, 5), torch.tensor([0, 3])) == pytest.approx(math.log(5))
    # softmax of (ln 3, 0) is (3/4, 1/4)
    logits = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    assert class_cross_entropy(logits, torch.tensor([0, 1])) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_samples_without_a_class_add_nothing():
    logits = torch.tensor([[LN3, 0.0], [-5.0, 2.0]], requires_grad=True)
    value = class_cross_entropy(logits, torch.tensor([1, -1]))
    assert value.item() == pytest.approx(math.log(4) / 2)  # a mean over the batch, so that shares of micro-batches add up
    value.backward()
    assert logits.grad[1].abs().max() == 0
    assert logits.grad[0].abs().max() > 0


def test_a_batch_without_classes_is_zero_not_nan():
    logits = torch.randn(3, 4, requires_grad=True)
    value = class_cross_entropy(logits, torch.full((3,), -1))
    value.backward()
    assert value == 0
    assert logits.grad.abs().max() == 0
