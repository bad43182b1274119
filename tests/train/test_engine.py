"""What training on a CPU computes attention in."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from xdyna_train.engine import attention_for


def gradients(queries: Tensor, others: list[Tensor], exact: bool = False) -> list[Tensor]:
    """Of attention's sum of squares, for leaves in float32 under autocast, or in float64 without."""
    leaves = [x.detach().to(torch.float64 if exact else torch.float32).requires_grad_() for x in (queries, *others)]
    with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
        q, k, v = (leaf if exact else leaf.bfloat16() for leaf in leaves)
        out = F.scaled_dot_product_attention(q, key=k, value=v)
    assert out.dtype == q.dtype
    out.double().square().sum().backward()
    return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("sharpness", [1.0, 16.0, 1024.0])
def test_attention_on_a_cpu_is_as_precise_as_its_inputs_in_bfloat16(sharpness: float) -> None:
    """Also where scores are large, as a nano model has them; plain products in bfloat16 are 10 to 110 % off there."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 200, 32, generator=generator).bfloat16().float() for _ in range(3))
    exact = gradients(sharpness * q, [k, v], exact=True)
    with attention_for(torch.device("cpu")):
        found = gradients(sharpness * q, [k, v])
    assert len(found) == len(exact) == 3
    for a, b in zip(found, exact, strict=True):
        assert (a - b).norm() < 0.004 * b.norm()


def test_what_is_no_attention_stays_in_bfloat16() -> None:
    with attention_for(torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16
