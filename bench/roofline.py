"""What this very device can do at best, measured in the run that is judged by it, and the picture of it."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from shapes import Work
from timing import Call, Times


@dataclass(frozen=True)
class Roofline:
    """The best of some runs each: operations a second in one dtype, bytes a second read and written, and
    exponentials a second (None where they were not measured, and then they bound nothing)."""

    flops: float
    bytes: float
    exps: float | None

    def bound(self, work: Work) -> tuple[float, str]:
        """Milliseconds below which no kernel can do the work, and what binds it."""
        parts = {"matmul": work.flops / self.flops, "memory": work.bytes / self.bytes}
        if self.exps is not None:
            parts["exp"] = work.exps / self.exps
        by = max(parts, key=lambda name: parts[name])
        return 1000 * parts[by], by

    def best(self, other: "Roofline | None") -> "Roofline":
        """The higher of the two in everything."""
        if other is None:
            return self
        exps = None if self.exps is None or other.exps is None else max(self.exps, other.exps)
        return Roofline(max(self.flops, other.flops), max(self.bytes, other.bytes), exps)

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)

    def __str__(self) -> str:
        exps = "exponentials not measured" if self.exps is None else f"{self.exps / 1e12:.2f}e12 exp/s"
        return f"{self.flops / 1e12:.3g} TFLOP/s matmul, {self.bytes / 1e9:.4g} GB/s copy, {exps}"


class Probes:
    """A large matmul, a large copy, and on a GPU a kernel of nothing but exponentials: calls to be timed in turns
    with what they judge, so that a clock that drops lowers the roof with the rest."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        cuda = device.type == "cuda"
        size, elements = (8192, 2**28) if cuda else (1024, 2**24)
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        source = torch.ones(elements, device=device)
        target = torch.empty_like(source)
        self.calls: dict[str, Call] = {"probe matmul": lambda: a @ b, "probe copy": lambda: target.copy_(source)}
        self._amounts = {"probe matmul": 2 * size**3, "probe copy": 2 * elements * source.element_size()}
        if cuda:
            import exp_probe  # triton is there wherever torch has a GPU, not on every other machine

            programs = 64 * torch.cuda.get_device_properties(device).multi_processor_count
            self.calls["probe exp"], self._amounts["probe exp"] = exp_probe.probe(device, programs, rounds=16)

    def read(self, times: dict[str, Times]) -> Roofline:
        """The rate that a fifth of the runs of each exceed: the very fastest may be a clock's error, beyond what the
        device can do."""
        rates = {name: 1000 * amount / times[name].quantile(0.2) for name, amount in self._amounts.items()}
        return Roofline(rates["probe matmul"], rates["probe copy"], rates.get("probe exp"))


def draws(path: Path) -> bool:
    """Whether a picture can have that name, as far as matplotlib is here to tell."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        return True
    return path.suffix.removeprefix(".").lower() in FigureCanvasBase.get_supported_filetypes()


def plot(path: Path, roofline: Roofline, rows: list[dict]) -> None:
    """Draws the timed rows under the roof: operations a byte against operations a second, one colour a contender.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="FLOP a byte at least", ylabel="TFLOP/s")
    timed = [row for row in rows if row["ms"] is not None]
    intensities = [row["intensity"] for row in timed] or [1.0]
    knee = roofline.flops / roofline.bytes
    left, right = min(*intensities, knee) / 2, max(*intensities, knee) * 2
    roof = [left, knee, right], [left * roofline.bytes / 1e12, *[roofline.flops / 1e12] * 2]
    axes.plot(*roof, color="black", label="roof of this device")
    for index, backend in enumerate(dict.fromkeys(row["backend"] for row in timed)):
        for direction, marker in (("forward", "o"), ("forward+backward", "^")):
            mine = [row for row in timed if (row["backend"], row["direction"]) == (backend, direction)]
            if mine:
                points = [row["intensity"] for row in mine], [row["tflops"] for row in mine]
                axes.plot(*points, marker, color=f"C{index % 10}", label=f"{backend}, {direction}")
    axes.set_title("reference attention")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
