"""Where the person is in a frame: MediaPipe's selfie segmentation, whose wheel carries its model."""

from types import TracebackType
from typing import Any, Self

import numpy as np

from xdyna_model.detectors.mediapipe import import_solutions
from xdyna_model.detectors.native_log import native_stderr_aside


class PersonMask:
    """Draws the mask of whoever is seen. Every frame stands alone. Close it, or use it in a `with`.

    Raises InputError where mediapipe is not installed.
    """

    def __init__(self) -> None:
        solutions = import_solutions()
        with native_stderr_aside():
            self._model: Any = solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
            self._model.process(np.zeros((64, 64, 3), np.uint8))

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """frame: [H, W, 3] uint8 RGB. Returns [H, W] bool."""
        return self._model.process(np.ascontiguousarray(frame)).segmentation_mask > 0.5

    def close(self) -> None:
        """Frees the model."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
