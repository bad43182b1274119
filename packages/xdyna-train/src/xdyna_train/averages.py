"""Running averages of what learns; they are what is kept at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor

from xdyna_train.config import Part


class Averages:
    """Exponential moving averages of the parts that a stage trains."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._parts: set[Part] = set()
        self._learning: list[nn.Parameter] = []
        self._ema: EMAModel | None = None

    def begin(self, parts: Sequence[Part], learning: list[nn.Parameter]) -> None:
        """Where the same parts go on learning, their averages go on. Otherwise those that have learnt take their
        averages, since what comes after is trained beside what will be kept, and new averages are begun."""
        if set(parts) != self._parts:
            self.settle()
            self._parts, self._learning = set(parts), learning
            # All at once, but for weights that are shared out, which cannot be copied so.
            foreach = not any(isinstance(parameter, DTensor) for parameter in learning)
            self._ema = EMAModel(learning, decay=self._decay, foreach=foreach)

    def step(self) -> None:
        """After each step of the optimiser."""
        self._begun.step(self._learning)

    def settle(self) -> None:
        """Puts the averages in the place of the weights."""
        if self._ema is not None:
            self._ema.copy_to(self._learning)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The same for the time of a block."""
        self._begun.store(self._learning)
        self._begun.copy_to(self._learning)
        try:
            yield
        finally:
            self._begun.restore(self._learning)

    def state_dict(self) -> dict[str, Any]:
        """The averages, and how often they were updated."""
        return self._begun.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of averages that were begun with the same parts."""
        self._begun.load_state_dict(state)
        self._begun.to(self._learning[0].device)

    @property
    def _begun(self) -> EMAModel:
        assert self._ema is not None, "begin first"
        return self._ema
