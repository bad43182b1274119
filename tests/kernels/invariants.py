"""What must hold of reference attention whatever computes it. `call` takes its eleven tensors by place; `near` is how
close results must be, as `torch.testing.assert_close` takes it."""

import torch

NAMES = ("q", "k", "v", "q_ref", "k_ref", "v_ref", "w_out", "b_out", "w_ref", "b_ref", "residual")


def zero_reference_weights_give_self_attention(call, tensors, **near):
    q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual = tensors
    off = call(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref * 0, b_ref * 0, residual)
    heads = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
    own = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(*q.shape[:3], -1)
    torch.testing.assert_close(off, own @ w_out.mT + b_out + residual, **near)


def frames_are_independent(call, tensors, **near):
    order = torch.randperm(tensors[0].shape[1], generator=torch.Generator().manual_seed(0))
    assert not torch.equal(order, order.sort()[0])
    of_frames = {"q", "k", "v", "q_ref", "residual"}
    permuted = [t[:, order] if name in of_frames else t for name, t in zip(NAMES, tensors, strict=True)]
    torch.testing.assert_close(call(*permuted), call(*tensors)[:, order], **near)


def batch_can_be_split(call, tensors, **near):
    out = call(*tensors)
    assert len(out) > 1
    for b in range(len(out)):
        single = [t if name.startswith(("w_", "b_")) else t[b : b + 1] for name, t in zip(NAMES, tensors, strict=True)]
        torch.testing.assert_close(call(*single), out[b : b + 1], **near)


ALL = (zero_reference_weights_give_self_attention, frames_are_independent, batch_can_be_split)
