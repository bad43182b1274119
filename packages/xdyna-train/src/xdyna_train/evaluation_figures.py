"""The figures of an evaluation: what is measured on each case, and the numbers and bars made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from xdyna_train.evaluation_cases import MEASURED, Case
from xdyna_train.metrics.colour import PARTS, colour_error
from xdyna_train.metrics.expression import READ, ReadOut
from xdyna_train.metrics.intervals import correlation
from xdyna_train.metrics.joints import joints_on_figure
from xdyna_train.metrics.motion import apart, flicker, measure_flow, motion_energy, motion_followed
from xdyna_train.metrics.retrieval import retrieved
from xdyna_train.metrics.silhouette import find_figure, intersection_over_union

FLOWING = tuple(kind for kind in MEASURED if kind != "room")


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on N results, one row a case.

    iou, joints, retrieved: [N], 0 to 1. colour: [N, 4] errors of `PARTS`, 0 to 1, NaN where a part is not seen.
    reading: [N, F, 2] of mouth and eyes. flow: [N, 2] pixels a frame (right, down), NaN where nothing drifts.
    followed: [N], how much of the truth's motion the scene shows, NaN where it does not move.
    energy: [N] where the scene moves and, in rooms, where it would: apart from the figure. flicker: [N] where nothing
        moves, the figure's own surface and its edge among it, NaN elsewhere than in rooms.
    """

    iou: np.ndarray
    joints: np.ndarray
    retrieved: np.ndarray
    colour: np.ndarray
    reading: np.ndarray
    flow: np.ndarray
    followed: np.ndarray
    energy: np.ndarray
    flicker: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


def measure(cases: Sequence[Case], results: Sequence[np.ndarray], read_out: ReadOut) -> Measured:
    """results: [F, H, W, 3] float32 in [0, 1] of the first of the cases. All cases are candidates of retrieval."""
    masks = np.stack([case.masks for case in cases])
    rows = [_measure(cases[own], frames, own, masks, read_out) for own, frames in enumerate(results)]
    return Measured(*(np.stack(column) for column in zip(*rows, strict=True)))


def _measure(case: Case, frames: np.ndarray, own: int, masks: np.ndarray, read_out: ReadOut) -> tuple:
    """In the order of `Measured`."""
    truth, background = unit(case.truth), unit(case.background)
    found = find_figure(frames, case.colours, background)
    still = case.scene.kind == "room"
    left, top, right, bottom = case.scene.window(*truth.shape[1:3])
    drifts = bottom > top
    window = (slice(None), slice(top, bottom), slice(left, right))
    return (
        intersection_over_union(found, case.masks),
        joints_on_figure(found, case.persons),
        retrieved(found, masks, own),
        colour_errors(case, frames),
        read_out(frames, case.heads),
        np.array(measure_flow(frames[window], case.flowing[window]) if drifts else (np.nan, np.nan)),
        np.float64(motion_followed(frames, truth, case.flowing)),
        np.float64(motion_energy(frames, apart(case.truth, case.background[1:]) if still else case.flowing)),
        np.float64(flicker(frames, truth) if still else np.nan),
    )


def colour_errors(case: Case, frames: np.ndarray) -> np.ndarray:
    """[4], of `PARTS`."""
    truth = unit(case.truth)
    return np.array([colour_error(frames, truth, case.parts[part]) for part in PARTS])


def unit(pictures: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return pictures.astype(np.float32) / 255


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results on N cases beside the truth and the copied reference on the same.

    stranger: [N, 4] colour errors of someone else in the identity's place. expression: [N, F, 2], how far mouth and
    eyes of the driving face are open. flow: [N, 2] of the scenes, pixels a frame. kinds: [N] of the scenes.
    """

    model: Measured
    truth: Measured
    copy: Measured
    stranger: np.ndarray
    expression: np.ndarray
    flow: np.ndarray
    kinds: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Figure:
    """One line of the table. of: its value, NaN where the cases cannot tell. low, high: the bar, both included, or
    None for a figure that has none."""

    name: str
    of: Callable[[Comparison], float]
    low: float | None = None
    high: float | None = None

    @property
    def bar(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}" if self.high is not None else ""

    def passed(self, value: float) -> bool | None:
        """None without a bar; NaN never passes."""
        if not self.bar:
            return None
        return bool(
            (self.low is None or value >= self.low) and (self.high is None or value <= self.high) and value == value
        )


def iou_gain(c: Comparison) -> float:
    """Above copying the reference."""
    return float(c.model.iou.mean() - c.copy.iou.mean())


def colour_ratio(c: Comparison, part: int | slice = slice(None)) -> float:
    """Error of a part, or of all, in errors of a stranger."""
    return _ratio(_mean(c.model.colour[:, part]), _mean(c.stranger[:, part]))


def reading(c: Comparison, k: int) -> float:
    """Correlation of mouth (0) or eyes (1), over all frames of all cases, with the driving face's parameter."""
    return correlation(c.model.reading[..., k], c.expression[..., k])


def reading_share(c: Comparison, k: int) -> float:
    """The same in correlations of the truth."""
    return _ratio(reading(c, k), correlation(c.truth.reading[..., k], c.expression[..., k]))


def flow_size(c: Comparison, kinds: Sequence[str] = FLOWING) -> float:
    """Median over the cases of the flow along its true direction, in parts of the true size; below 0: backwards."""
    flow, true = _flows(c, kinds)
    return _median((flow * true).sum(-1) / (true**2).sum(-1))


def flow_angle(c: Comparison, kinds: Sequence[str] = FLOWING) -> float:
    """Median over the cases of the degrees between the flow and its true direction; 90 where nothing flows."""
    flow, true = _flows(c, kinds)
    along, size = (flow * true).sum(-1), np.linalg.norm(flow, axis=-1) * np.linalg.norm(true, axis=-1)
    return _median(np.degrees(np.arccos(np.clip(np.where(size > 0, along / np.where(size > 0, size, 1), 0), -1, 1))))


def followed(c: Comparison) -> float:
    """Median over the cases whose scene moves."""
    return _median(c.model.followed[np.isfinite(c.model.followed)])


def room_flicker(c: Comparison) -> float:
    return _mean(c.model.flicker)


def energy_ratio(c: Comparison) -> float:
    """What moves where the scene does, less what moves in as much of a room, which is flicker, in parts of the truth's.
    Both apart from the figure: at its edge a picture flickers most, and none of that is in what scenes move."""
    rooms = c.kinds == "room"
    return _ratio(_mean(c.model.energy[~rooms]) - _mean(c.model.energy[rooms]), _mean(c.truth.energy[~rooms]))


def _flows(c: Comparison, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.isin(c.kinds, kinds)
    return c.model.flow[chosen], c.flow[chosen]


def _ratio(value: float, base: float) -> float:
    return float(value / base) if base > 0 else float("nan")


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


IOU_GAIN = Figure("silhouette IoU above copying", iou_gain, low=0.15)
JOINTS = Figure("joints on the figure", lambda c: float(c.model.joints.mean()), low=0.9)
RETRIEVAL = Figure("pose retrieval, 1 of all", lambda c: float(c.model.retrieved.mean()), low=0.9)
COLOUR = Figure("colour error / a stranger's", colour_ratio, high=1 / 3)
FLOW_SIZE = Figure("flow along the truth's / its size", flow_size, low=0.5, high=1.5)
FLOW_ANGLE = Figure("flow off the truth's direction, degrees", flow_angle, high=45.0)
ENERGY = Figure("motion energy less flicker / the truth's", energy_ratio, low=0.6, high=1.5)
FLICKER = Figure("flicker in static rooms", room_flicker, high=0.015)

FIGURES = (
    Figure("silhouette IoU", lambda c: float(c.model.iou.mean())),
    IOU_GAIN,
    JOINTS,
    RETRIEVAL,
    *(Figure(f"{part} colour error", lambda c, k=k: _mean(c.model.colour[:, k])) for k, part in enumerate(PARTS)),
    *(
        Figure(f"{part} colour error / a stranger's", lambda c, k=k: colour_ratio(c, k), high=1 / 3)
        for k, part in enumerate(PARTS)
    ),
    *(Figure(f"{name} r with the driving face", lambda c, k=k: reading(c, k)) for k, name in enumerate(READ)),
    *(Figure(f"{name} r / the truth's r", lambda c, k=k: reading_share(c, k), low=0.8) for k, name in enumerate(READ)),
    *(
        Figure(
            f"{kind} flow along the truth's / its size", lambda c, kind=kind: flow_size(c, [kind]), low=0.5, high=1.5
        )
        for kind in FLOWING
    ),
    *(
        Figure(f"{kind} flow off the truth's direction, degrees", lambda c, kind=kind: flow_angle(c, [kind]), high=45.0)
        for kind in FLOWING
    ),
    Figure("scene motion followed, of the truth's", followed),
    ENERGY,
    FLICKER,
)
# Of results made with swapped face maps. A driving face that is not shown must leave no trace.
SWAPPED = tuple(
    Figure(f"{name} r with the driving face, face maps swapped", lambda c, k=k: reading(c, k), low=-0.2, high=0.2)
    for k, name in enumerate(READ)
)
SHOWN = tuple(Figure(f"{name} r with the swapped face", lambda c, k=k: reading(c, k)) for k, name in enumerate(READ))
