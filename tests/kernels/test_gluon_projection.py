"""The Gluon kernel of the projection on CPU tensors, by the stand-in of gluon_on_cpu.py."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from xdyna_kernels import gluon_forward, gluon_projection, gluon_projection_kernel, gluon_tiles, triton_operator

sys.path.insert(0, str(Path(__file__).parent))
from gluon_on_cpu import OnCPU, edited_kernel
from gluon_program import ANY, STUCK, TOO_EARLY, KernelError

DTYPES = [torch.float16, torch.bfloat16]
TILES = {"one part": gluon_tiles.Projection(64, 32, 64, 2), "two parts": gluon_tiles.Projection(64, 48, 64, 3)}
TERMS = ("b_out", "b_ref", "residual")


def inputs(frames=1, N=70, K=80, C=72, dtype=torch.bfloat16, absent=(), seed=0) -> list[Any]:
    """both, w_out, b_out, w_ref, b_ref and residual."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"both": (frames, N, 2 * K), "w_out": (C, K), "b_out": (C,), "w_ref": (C, K), "b_ref": (C,)}
    shapes |= {"residual": (1, frames, N, C)}
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return [None if name in absent else x for name, x in made.items()]


def project(tensors, tile=TILES["two parts"], kernel=gluon_projection_kernel, programs=2):
    """gluon_projection.project, whose fresh memory holds NaN, by at most so many programs."""
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gluon_projection, "project_kernel", OnCPU(kernel, "project_kernel"))
            patch.setattr(gluon_projection, "PROJECTION", {8: tile})
            patch.setattr(gluon_forward, "multiprocessors", lambda on: programs)
            return gluon_projection.project(*tensors)
    finally:
        torch.use_deterministic_algorithms(False)


def exact(tensors):
    both, w_out, b_out, w_ref, b_ref, residual = tensors
    own, ref = both.double().flatten(0, 1).chunk(2, dim=1)
    out = own @ w_out.double().mT + ref @ w_ref.double().mT
    for term in (b_out, b_ref, residual):
        out = out if term is None else out + term.double().reshape(-1, out.shape[1])
    return out


def close(tensors, found) -> bool:
    """Within a rounding of the result, as all sums are float32."""
    eps = torch.finfo(found.dtype).eps
    return torch.allclose(found.double(), exact(tensors), rtol=0.51 * eps, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("N", "K", "C"), [(1, 8, 8), (63, 64, 48), (64, 128, 96), (130, 72, 104), (200, 200, 40), (65, 320, 32)]
)
def test_parity(N, K, C, tile, dtype):
    """One tile and many, tails of rows, summed channels and output channels and none, more steps than stages."""
    tensors = inputs(N=N, K=K, C=C, dtype=dtype)
    assert close(tensors, project(tensors, TILES[tile]))


@pytest.mark.parametrize("tile", gluon_tiles.PROJECTION.values())
def test_tiles_of_the_table(tile):
    tensors = inputs(N=260, K=136, C=328)
    assert close(tensors, project(tensors, tile))


@pytest.mark.parametrize("programs", [1, 3, 132])
@pytest.mark.parametrize("K", [40, 64, 136])
def test_programs_share_the_tiles(programs, K):
    """Odd and even numbers of tiles a program, warpgroups without one; rings that begin at any stage and phase."""
    tensors = inputs(frames=3, N=100, K=K, C=104)
    assert torch.equal(project(tensors, programs=programs), project(tensors))


@pytest.mark.parametrize("absent", [["b_out"], ["b_ref"], ["residual"], sorted(TERMS)], ids=" ".join)
def test_terms_that_are_not_there(absent):
    tensors = inputs(absent=absent)
    assert close(tensors, project(tensors))


def test_what_does_not_lie_densely():
    tensors = inputs()
    strided = [tensors[0], *(x.repeat_interleave(2, dim=-1)[..., ::2] for x in tensors[1:])]
    assert not any(x.is_contiguous() for x in strided[1:])
    assert torch.equal(project(strided), project(tensors))


@pytest.mark.parametrize(("channels", "limit"), [(8, 320), (320, 320), (328, 640), (1280, 1280), (5120, 1280)])
def test_the_tile_goes_by_the_output_channels(channels, limit):
    assert gluon_projection.projection_tile(channels) is gluon_tiles.PROJECTION[limit]


@pytest.mark.parametrize(("kernel", "projected"), [("gluon", []), ("gluon_all", [(12, 16)])])
def test_the_operator_takes_it_where_it_is_asked_for(kernel, projected, monkeypatch):
    taken = []

    def spy(both, w_out, *rest):
        taken.append(tuple(w_out.shape))
        return both.new_zeros(both.shape[0] * both.shape[1], w_out.shape[0])

    monkeypatch.setattr(gluon_forward, "attend", lambda q, *rest, keep_lse: (q.new_zeros(2, 5, 32), q.new_zeros(0)))
    monkeypatch.setattr(gluon_projection, "project", spy)
    monkeypatch.setattr("xdyna_kernels.triton_projection.project", lambda both, w_out, *rest: both.new_zeros(10, 12))
    shapes = [(1, 2, 5, 2, 8)] * 4 + [(1, 7, 2, 8)] * 2 + [(12, 16), (12,), (12, 16), (12,), (1, 2, 5, 12)]
    triton_operator.forward(*map(torch.zeros, shapes), "recompute", kernel)
    assert taken == projected


LEFT = "            mbarrier.arrive(ring[4].index((step - 1) % STAGES))\n"
ISSUED = "            sums0, sums1 = _issue(ring, step, sums0, sums1, C1, DEPTH, STAGES)\n"
OVER = "            sums0, sums1 = warpgroup_mma_wait(0, deps=(sums0, sums1))\n"
# An edit of the kernel, and what the stand-in says of it; "" where only parity can tell.
FAULTS = {
    "first step not waited for": (
        "        mbarrier.wait(ring[3].index(first % STAGES), (first // STAGES) & 1)\n", "", TOO_EARLY,
    ),
    "steps not waited for": (
        "            mbarrier.wait(ring[3].index(step % STAGES), (step // STAGES) & 1)\n", "", TOO_EARLY,
    ),
    "wrong phase": ("(step // STAGES) & 1", "(step // STAGES + 1) & 1", ANY),
    "wrong phase of the producer": ("(step // STAGES + 1) & 1)\n    if C1", "(step // STAGES) & 1)\n    if C1", STUCK),
    "stage filled while it is read": (
        "    mbarrier.wait(free.index(stage), (step // STAGES + 1) & 1)\n", "", ANY,
    ),
    "stage left before its products are over": (ISSUED + LEFT, LEFT + ISSUED, ANY),
    "this step's stage left": ("index((step - 1) % STAGES)", "index(step % STAGES)", ANY),
    "stages never left": (LEFT, "", STUCK),
    "last stage never left": ("        mbarrier.arrive(ring[4].index((first - 1) % STAGES))\n", "", STUCK),
    "sums used too early": (OVER, OVER.replace("wait(0", "wait(1"), ANY),
    "too few bytes expected": ("w0.block_type.nbytes + w1.block_type.nbytes)", "w0.block_type.nbytes)", ANY),
    "too many bytes expected": ("x.block_type.nbytes + w0.block_type.nbytes + w1", "2 * x.block_type.nbytes + w1", ANY),
    "both warpgroups take all tiles": ("tiles, 2 * gl.num_programs(0)", "tiles, gl.num_programs(0)", ANY),
    "no turns": ("        mbarrier.wait(turn.index(GROUP), phase)\n", "", ANY),
    "a turn of the other": ("wait(turn.index(GROUP), phase)", "wait(turn.index(1 - GROUP), phase)", ANY),
    "turns that the second begins": ("phase = 1 - GROUP", "phase = GROUP", ANY),
    "a turn for ever": ("        phase ^= 1\n", "", ANY),
    "turns never handed on": ("        mbarrier.arrive(turn.index(1 - GROUP))\n", "", STUCK),
    "steps of the other not passed over": ("        first += 2 * steps  # those of the other warpgroup\n", "", ANY),
    "one warpgroup for another": ("first = GROUP * 2 * steps", "first = (1 - GROUP) * 2 * steps", ANY),
    "the own branch twice": ("_fill(x, w_ref[0], w_ref[1], 1,", "_fill(x, w_ref[0], w_ref[1], 0,", ""),
    "its weights twice": ("_fill(x, w_ref[0], w_ref[1], 1,", "_fill(x, w_out[0], w_out[1], 1,", ""),
    "rest of the weights of the wrong rows": ("[column + C0, depth]", "[column, depth]", ""),
    "rest stored in the wrong place": ("_store(out, sums1, row, column + C0", "_store(out, sums1, row, column", ""),
    "residual of the wrong place": ("C, ROWS, C1, of_sums1", "C, ROWS, C1, of_sums1) * (1 if row else 0", ""),
    "a bias left out": ("    if b_ref is not None:\n", "    if False:\n", ""),
    "last rows left out": ("mask=(rows < R) & (columns < C))\n\n\n@gluon.jit\ndef _consume",
                           "mask=(rows < R - 1) & (columns < C))\n\n\n@gluon.jit\ndef _consume", ""),
    "last columns left out": ("mask=(rows < R) & (columns < C))\n\n\n@gluon.jit\ndef _consume",
                              "mask=(rows < R) & (columns < C - 8))\n\n\n@gluon.jit\ndef _consume", ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault, tmp_path):
    right, wrong, message = FAULTS[fault]
    edited = edited_kernel(tmp_path, {right: wrong}, gluon_projection_kernel)
    tensors = inputs(N=260, K=200, C=104)  # eight steps a tile, which three stages do not divide
    if message:
        with pytest.raises(KernelError, match=message):
            project(tensors, kernel=edited)
    else:
        assert not close(tensors, project(tensors, kernel=edited))
