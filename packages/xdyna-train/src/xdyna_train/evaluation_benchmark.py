"""The exam: held-back cases, and how the truth, a copied reference and a stranger do in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from xdyna_model.errors import InputError

from xdyna_train.evaluation_cases import FRAMES, Case, draw_cases, read_out_rng
from xdyna_train.evaluation_figures import Comparison, Measured, colour_errors, measure, unit
from xdyna_train.metrics.expression import ReadOut, fit_read_out


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Drawn once, any number of models can be measured on it.

    truth, copy: measured on the truth and on the copied reference. swapped_truth: the truth with the reading of
    swapped expressions. stranger: [N, 4] colour errors of someone else.
    """

    seed: int
    cases: list[Case]
    read_out: ReadOut
    truth: Measured
    copy: Measured
    swapped_truth: Measured
    stranger: np.ndarray

    @classmethod
    def draw(cls, identities: int, seed: int, height: int, width: int, frames: int = FRAMES) -> "Benchmark":
        """identities: how many, each with a scene, a motion and a noise of its own, all drawn from `seed`.

        Raises InputError for fewer than two identities or frames.
        """
        if identities < 2 or frames < 2:
            raise InputError(f"{identities} identities of {frames} frames cannot be compared; 2 of each at least")
        cases = draw_cases(identities, seed, height, width, frames)
        read_out = fit_read_out(height, width, read_out_rng(seed))
        copies = [np.repeat(unit(case.reference)[None], frames, 0) for case in cases]
        truth = measure(cases, [unit(case.truth) for case in cases], read_out)
        swapped = np.stack([read_out(unit(case.swapped_truth), case.heads) for case in cases])
        return cls(
            seed=seed,
            cases=cases,
            read_out=read_out,
            truth=truth,
            copy=measure(cases, copies, read_out),
            swapped_truth=replace(truth, reading=swapped),
            stranger=np.stack([colour_errors(case, unit(case.stranger)) for case in cases]),
        )

    def measure(self, results: Sequence[np.ndarray]) -> Measured:
        """results: [F, H, W, 3] float32 in [0, 1] of the first cases."""
        return measure(self.cases, results, self.read_out)

    def compare(self, model: Measured) -> Comparison:
        """Measured results of the first cases beside all that is known of these."""
        cases = self.cases[: len(model.iou)]
        first = np.arange(len(cases))
        return Comparison(
            model=model,
            truth=self.truth[first],
            copy=self.copy[first],
            stranger=self.stranger[first],
            expression=np.stack([case.expression for case in cases]),
            flow=np.array([case.scene.flow(case.truth.shape[1]) for case in cases]),
            kinds=np.array([case.scene.kind for case in cases]),
        )
