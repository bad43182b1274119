"""The adapter's packed projection: it must be told from four separate ones by nothing but where q, k, v, q' lie."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_processor import Attention
from torch import nn
from xdyna_kernels import reference_attention
from xdyna_model import dynamics_adapter
from xdyna_model.clip_layout import ClipLayout
from xdyna_model.dynamics_adapter import DynamicsAdapter, packable

PROJECTIONS = ("to_q", "to_k", "to_v", "processor.to_q_ref")


def adapted(frames=3, **changes):
    torch.manual_seed(0)
    attention = Attention(query_dim=64, heads=8, dim_head=8, **changes)
    attention.set_processor(DynamicsAdapter(attention, ClipLayout(frames)))
    attention.processor.packed = True
    for weight in attention.parameters():  # the adapter starts with zeros, which would hide its query
        nn.init.normal_(weight, std=0.2)
    return attention


def run(attention, packed, x=None):
    attention.processor.packed = packed
    return attention(torch.randn(6, 9, 64, generator=torch.Generator().manual_seed(1)) if x is None else x)


def layers(attention):
    return [attention.get_submodule(name) for name in PROJECTIONS]


@pytest.fixture
def seen(monkeypatch):
    """The tensors that the last call gave to reference attention."""
    tensors = []

    def spy(*arguments, **options):
        tensors[:] = arguments
        return reference_attention(*arguments, **options)

    monkeypatch.setattr(dynamics_adapter, "reference_attention", spy)
    return tensors


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_same_as_the_released_code(oracle, backend):
    data = oracle("mixed_attention")
    attention = adapted(frames=5)
    names = {"to_q_ff": "processor.to_q_ref", "to_out_ff": "processor.to_out_ref"}
    weights = {".".join(names.get(part, part) for part in name.split(".")): w for name, w in data.weights.items()}
    attention.load_state_dict(weights, strict=True)
    attention.processor.backend = backend
    torch.testing.assert_close(run(attention, True, data["in.hidden_states"]), data["out"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_q_k_v_are_views_that_no_kernel_copies(seen):
    readable = pytest.importorskip("xdyna_kernels.triton_forward").readable
    run(adapted(), True)
    assert {x.untyped_storage().data_ptr() for x in seen[:6]} == {seen[0].untyped_storage().data_ptr()}
    assert [x.stride() for x in seen[:6]] == [(3 * 9 * 256, 9 * 256, 256, 8, 1)] * 4 + [(3 * 9 * 256, 256, 8, 1)] * 2
    assert all(readable(x) is x for x in seen[:6])


@torch.no_grad()
def test_changed_weights_are_seen(seen):
    attention = adapted()
    before = run(attention, True)
    attention.get_submodule("to_k").weight.mul_(-1)
    assert not torch.allclose(run(attention, True), before, atol=0.1)
    torch.testing.assert_close(run(attention, True), run(attention, False))
    attention.to_v = nn.Linear(64, 64, bias=False)
    torch.testing.assert_close(run(attention, True), run(attention, False))
    x = torch.randn(6, 9, 64).double()
    torch.testing.assert_close(run(attention.double(), True, x), run(attention, False, x))


@pytest.mark.parametrize("trained", [PROJECTIONS, PROJECTIONS[3:], PROJECTIONS[:1], ()])
def test_derivatives_reach_exactly_the_trained_weights(trained):
    found = []
    for packed in (True, False):
        attention = adapted().double().requires_grad_(False)  # in float64, since packing changes the order of sums
        for name in trained:
            attention.get_submodule(name).requires_grad_(True)
        x = torch.randn(6, 9, 64, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        run(attention, packed, x).square().sum().backward()
        gradients = {name: weight.grad for name, weight in attention.named_parameters() if weight.grad is not None}
        assert set(gradients) == {f"{name}.weight" for name in trained}
        found.append([x.grad, *gradients.values()])
    torch.testing.assert_close(*found)


class Adapted(nn.Linear):
    """What a LoRA library puts in a linear layer's place."""

    def forward(self, input):
        return super().forward(input) + 1


def exchanged(attention):
    attention.to_k = Adapted(64, 64, bias=False)


def hooked(attention):
    attention.to_v.register_forward_hook(lambda layer, inputs, out: out + 1)


def forward_exchanged(attention):
    """As accelerate does to bring offloaded weights back."""
    plain = attention.to_q.forward
    attention.to_q.forward = lambda x: plain(x) + 1


@pytest.mark.parametrize("change", [exchanged, hooked, forward_exchanged])
@torch.no_grad()
def test_what_is_no_plain_layer_is_called(change):
    attention = adapted()
    before = run(attention, True)
    assert packable(layers(attention))
    change(attention)
    assert not packable(layers(attention))
    assert not torch.allclose(run(attention, True), before, atol=0.1)


def exchange(attention, name):
    layer = Adapted(64, 64)
    layer.load_state_dict(attention.get_submodule(name).state_dict())
    attention.set_submodule(name, layer)


def hook(attention, name):
    attention.get_submodule(name).register_forward_hook(lambda layer, inputs, out: out + 1)


def exchange_forward(attention, name):
    layer = attention.get_submodule(name)
    plain = layer.forward
    layer.forward = lambda x: plain(x) + 1


@pytest.mark.parametrize("name", ["to_out.0", "processor.to_out_ref"])
@pytest.mark.parametrize("change", [exchange, hook, exchange_forward])
@torch.no_grad()
def test_an_output_that_is_no_plain_layer_is_called(change, name):
    """LoRA of Stable Diffusion is at home there."""
    attention = adapted()
    before = run(attention, False)
    change(attention, name)
    torch.testing.assert_close(run(attention, False), before + 1)


@torch.no_grad()
def test_offloaded_weights_are_brought_back():
    """By accelerate's hooks, as in `enable_sequential_cpu_offload`; the weights lie on "meta" in between."""
    attention = adapted()
    before = run(attention, False)
    cpu_offload(attention, execution_device="cpu")
    assert attention.to_out[0].weight.device.type == "meta"
    torch.testing.assert_close(run(attention, False), before)


def test_packable():
    assert packable(layers(adapted()))
    assert not packable(layers(adapted(bias=True)))
    attention = adapted()
    attention.processor.to_q_ref.double()
    assert not packable(layers(attention))
    attention = adapted()
    attention.get_submodule("to_k").requires_grad_(False)
    assert not packable(layers(attention))
    with torch.no_grad():
        assert packable(layers(attention))


@pytest.mark.parametrize("packed", [False, True])
def test_autocast(packed, seen):
    """The layers compute in bfloat16, the weights stay in float32, and so do their derivatives."""
    found = []
    for enabled in (True, False):
        attention = adapted()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = run(attention, packed)
        assert {t.dtype for t in (out, *seen)} == {torch.bfloat16 if enabled else torch.float32}
        weights = dict(attention.named_parameters())
        found.append([out.float(), *torch.autograd.grad(out.float().square().sum(), list(weights.values()))])
    for half, single in zip(*found, strict=True):
        assert half.dtype == single.dtype
        assert (half - single).norm() < 0.03 * single.norm()


def test_default_on_a_cpu_is_separate(seen):
    run(adapted(), None)
    assert seen[0].is_contiguous()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"residual_connection": True}, "residual_connection"),
        ({"rescale_output_factor": 2.0}, "rescale_output_factor"),
        ({"scale_qk": False}, "scale_qk"),
        ({"dropout": 0.5}, "dropout"),
        ({"norm_num_groups": 8}, "group_norm"),
        ({"qk_norm": "layer_norm"}, "norm_q, norm_k"),
    ],
)
def test_an_attention_that_does_more_is_refused(change, named):
    with pytest.raises(ValueError, match=f"plain self-attention, this one has {named}"):
        adapted(**change)


def test_an_output_without_bias():
    attention = adapted()
    adapter = attention.processor
    nn.init.zeros_(adapter.to_out_ref.bias)
    expected = run(attention, packed=False)
    weight = adapter.to_out_ref.weight
    adapter.to_out_ref = nn.Linear(64, 64, bias=False)
    adapter.to_out_ref.weight = weight
    assert torch.equal(run(attention, packed=False), expected)
