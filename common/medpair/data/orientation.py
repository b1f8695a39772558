"""Which axis of a grid is which of the patient's, decided alike for grids that differ by rounding.

Of a grid turned by 45 degrees two axes are as near to one of the patient's. Which of them a reader
takes then hangs on the last bit of the header, and an image and its label, or a file and its copy,
are turned differently. So the grid is tilted by an angle that no scanner is set to before that is
decided (and only for that).
"""

from __future__ import annotations

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
)

# Rotations about x, y and z in radians, composed; a twentieth of a degree at most.
_X, _Y, _Z = 0.00031, 0.00053, 0.00079
TILT = (
    np.array([[np.cos(_Z), -np.sin(_Z), 0], [np.sin(_Z), np.cos(_Z), 0], [0, 0, 1]])
    @ np.array([[np.cos(_Y), 0, np.sin(_Y)], [0, 1, 0], [-np.sin(_Y), 0, np.cos(_Y)]])
    @ np.array([[1, 0, 0], [0, np.cos(_X), -np.sin(_X)], [0, np.sin(_X), np.cos(_X)]])
)
# Cosine of two axes; rounding in headers is a hundredth of it
RIGHT_ANGLE_TOLERANCE = 1e-3


def ras_axes(affine: np.ndarray) -> np.ndarray:
    """Return for each axis of a grid the RAS axis nearest to it, and its direction, (3, 2).

    Rows are NaN where no axis is left to be told apart.

    Args:
        affine: (4, 4) voxel to world.
    """
    tilted = np.array(affine, dtype=np.float64)
    tilted[:3, :3] = TILT @ tilted[:3, :3]
    return io_orientation(tilted)


def axis_codes(affine: np.ndarray) -> str:
    """Return the axis codes of a grid, such as ``PSR``; ``?`` where no axis is left."""
    return "".join(code or "?" for code in ornt2axcodes(ras_axes(affine)))


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an array and its affine with the axes turned and flipped into RAS order."""
    turns = ras_axes(affine)
    return apply_orientation(array, turns), affine @ inv_ornt_aff(turns, array.shape)


def sheared(affine: np.ndarray) -> bool:
    """Return whether the axes of an affine (4, 4) are not at right angles to each other."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=RIGHT_ANGLE_TOLERANCE)
