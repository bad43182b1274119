"""FaceMesh's 468 points -> the 68 points of iBUG (Sagonas et al. 2013)."""

import numpy as np

# Vertices of MediaPipe's canonical face mesh, in iBUG's order: each row runs as iBUG counts, which is from the
# person's right (the picture's left) to the left. The two halves of a row mirror each other in the mesh.
_JAW = (127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356)
_RIGHT_BROW = (70, 63, 105, 66, 107)
_LEFT_BROW = (336, 296, 334, 293, 300)
_NOSE_BRIDGE = (168, 197, 5, 4)
_NOSE_BASE = (98, 97, 2, 326, 327)
_RIGHT_EYE = (33, 160, 158, 133, 153, 144)
_LEFT_EYE = (362, 385, 387, 263, 373, 380)
_OUTER_LIPS = (61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91)
_INNER_LIPS = (78, 81, 13, 311, 308, 402, 14, 178)

IBUG_FROM_MESH = np.array(
    _JAW + _RIGHT_BROW + _LEFT_BROW + _NOSE_BRIDGE + _NOSE_BASE + _RIGHT_EYE + _LEFT_EYE + _OUTER_LIPS + _INNER_LIPS
)


def ibug_from_mesh(mesh: np.ndarray) -> np.ndarray:
    """mesh: [468 or 478, C] points of FaceMesh. Returns [68, C] in iBUG's order, of the same dtype."""
    return mesh[IBUG_FROM_MESH]
