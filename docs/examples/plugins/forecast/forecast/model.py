"""A straight line and some waves, fitted by least squares: simple, quick, and hard to break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Keeps waves that the data says nothing about near zero.
RIDGE = 1e-6


def parameters(seasons: Sequence[float], harmonics: int) -> int:
    """How many numbers the model has."""
    return 2 + 2 * sum(len(waves(season, harmonics)) for season in seasons)


def waves(season: float, harmonics: int) -> list[int]:
    """The waves of a season that its steps can show: half a season of two steps is the shortest."""
    return [k for k in range(1, harmonics + 1) if 2 * k < season]


def forecast(
    steps: Sequence[int], values: Sequence[float], ahead: Sequence[int], seasons: Sequence[float], harmonics: int
) -> tuple[list[float], float]:
    """What is expected at the steps `ahead`, and the standard deviation of the values from the model."""
    origin, scale = steps[0], float(max(steps[-1] - steps[0], 1))
    known = _matrix(np.asarray(steps) - origin, scale, seasons, harmonics)
    observed = np.asarray(values, dtype=float)
    gram = known.T @ known + RIDGE * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ observed)
    residuals = observed - known @ weights
    freedom = max(len(values) - known.shape[1], 1)
    deviation = float(np.sqrt(residuals @ residuals / freedom))
    expected = _matrix(np.asarray(ahead) - origin, scale, seasons, harmonics) @ weights
    return [float(value) for value in expected], deviation


def _matrix(at: NDArray[Any], scale: float, seasons: Sequence[float], harmonics: int) -> NDArray[Any]:
    """A row per step: one, the trend, and sine and cosine of each wave."""
    columns = [np.ones(len(at)), at / scale]
    for season in seasons:
        for wave in waves(season, harmonics):
            angle = 2.0 * np.pi * wave * at / season
            columns += [np.sin(angle), np.cos(angle)]
    return np.column_stack(columns)
