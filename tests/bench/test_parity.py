"""bench/parity.py: its limits leave room for what is right, and none for what is a little wrong."""

from types import ModuleType

import pytest
import torch
import xdyna_kernels

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)
ROOM = 1.5  # of a limit, above the errors of what is right


@pytest.fixture
def parity(load) -> ModuleType:
    return load("parity")


@pytest.fixture
def draw(load):
    """Tensors and a gradient of a shape; B, F, N, H, D."""
    shapes = load("shapes")
    return lambda sizes, dtype, seed=0: shapes.draw(shapes.Shape(*sizes), dtype, CPU, seed)


def sdpa(*tensors):
    return xdyna_kernels.reference_attention(*tensors, backend="sdpa")


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("sizes", [(1, 2, 64, 8, 80), (1, 2, 256, 8, 40)])
@pytest.mark.parametrize("seed", [0, 1])
def test_limits_of_half_precision_leave_room_for_what_is_right(parity, load, draw, dtype, sizes, seed):
    truth = parity.Truth(*draw(sizes, dtype, seed))
    for contender in (sdpa, load("opponents").released):
        verdict = truth.judge(contender)
        ratios = {name: verdict.limits[name] / error for name, error in verdict.errors.items() if error}
        assert min(ratios.values()) >= ROOM, ratios


def test_the_twin_that_rounds_is_the_operator(parity, draw):
    """In float32 it rounds nothing, so it is as near to float64 as eager; and its gradients, too."""
    tensors, grad = draw((1, 1, 20, 2, 8), torch.float32)
    assert parity.Truth(tensors, grad).judge(parity._rounding).failed == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(1, 5, 1, 8, 8), (1, 17, 1, 8, 40), (2, 3, 1, 2, 160)])
def test_one_token_passes_although_the_gradients_of_its_scores_are_zero(parity, load, draw, dtype, seed, sizes):
    truth = parity.Truth(*draw(sizes, dtype, seed))
    assert all(truth._truth[name].abs().max() == 0 for name in ("d q", "d k", "d q_ref", "d k_ref"))
    for contender in (sdpa, load("opponents").released):
        verdict = truth.judge(contender)
        assert verdict.failed == []
        assert all(0 < limit < 0.1 for limit in verdict.limits.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_a_gradient_that_should_be_zero_and_is_not_fails(parity, draw, dtype, place):
    """By a hundredth of the result's gradient, where that of the scores is lost in rounding."""

    def wrong(*tensors):
        leak = 0.01 * (tensors[place] - tensors[place].detach())
        leak = leak if leak.ndim == 5 else leak[:, None]
        return sdpa(*tensors) + leak.flatten(3)

    verdict = parity.Truth(*draw((1, 3, 1, 2, 8), dtype)).judge(wrong)
    assert verdict.failed == [f"d {parity.NAMES[place]}"]


def test_the_floor_is_below_every_truth_of_more_tokens(parity, draw):
    for sizes in ((1, 3, 20, 2, 8), (1, 2, 64, 8, 80), (1, 2, 256, 8, 40)):
        truth = parity.Truth(*draw(sizes, torch.float32))
        assert all(truth._truth[name].abs().max() > 2 * floor for name, floor in truth._floors.items())
