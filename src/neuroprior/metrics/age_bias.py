"""Age bias: predicted ages lean towards the mean age of training, so the error falls with age (Smith et al. 2019).

The slope of the error on true age measures it; a line fitted on *validation* subjects takes it away.

Two corrections are in use, and they do not mean the same:

- ``without_age`` (Cole et al. 2018): the fitted line of predicted on true age is inverted. It needs no age of the new
  subject, and so is a prediction; it undoes the pull to the mean and usually *raises* the MAE.
- ``with_age`` (Beheshti et al. 2019; de Lange and Cole 2020): the expected error at the subject's own age is taken away. It
  uses the age that was to be predicted, so its MAE is not an accuracy: a constant prediction gets a MAE of 0 by it (Butler
  et al. 2021). It is for brain-age gaps compared between groups.

Leakage: a correction fitted on the cases that it is judged on flatters both. There is therefore no function here that fits
and scores the same arrays; the validation arrays are arguments of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from . import _inputs, errors


def slope(truth: np.ndarray, guess: np.ndarray) -> float:
    """Slope of (guess - truth) on truth: 0 is unbiased, -1 a constant prediction; NaN with fewer than three cases or one age.

    Args:
        truth, guess: (n,) in years.
    """
    t, g = _inputs.pair(truth, guess)
    if t.size < 3 or t.std() == 0:
        return float("nan")
    centred = t - t.mean()
    return float(centred @ (g - t) / (centred @ centred))


@dataclass(frozen=True)
class Correction:
    """The line ``error = intercept + slope * age`` of the validation subjects.

    Attributes:
        intercept: in years, at age 0.
        slope: years of error a year of age.
        n: how many validation subjects it rests on.
    """

    intercept: float
    slope: float
    n: int

    def without_age(self, guess: np.ndarray) -> np.ndarray:
        """(n,) corrected predictions that use no true age (Cole et al. 2018).

        Raises:
            InputError: the predictions say nothing of age (slope -1), so the line cannot be inverted.
        """
        if abs(1 + self.slope) < 1e-9:
            raise InputError(
                "the validation predictions do not change with age, so their line cannot be inverted",
                got=f"slope {self.slope:.3g}",
            )
        return (np.asarray(guess, dtype=float) - self.intercept) / (1 + self.slope)

    def with_age(self, truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """(n,) predictions less the error expected at each subject's own age (Beheshti et al. 2019)."""
        return np.asarray(guess, dtype=float) - (self.intercept + self.slope * np.asarray(truth, dtype=float))


def fit(truth: np.ndarray, guess: np.ndarray) -> Correction:
    """The correction of *validation* subjects; (n,) each in years.

    Raises:
        InputError: fewer than three subjects, or all of one age.
    """
    t, g = _inputs.pair(truth, guess)
    steep = slope(t, g)
    if not np.isfinite(steep):
        raise InputError("an age-bias line needs at least three validation subjects of different ages", got=f"{t.size} subjects")
    return Correction(float((g - t).mean() - steep * t.mean()), steep, int(t.size))


def corrected_mae(
    truth: np.ndarray, guess: np.ndarray, *, fit_truth: np.ndarray, fit_guess: np.ndarray, use_age: bool = False
) -> float:
    """MAE after the correction, in years.

    Args:
        truth, guess: (n,) of the judged subjects.
        fit_truth, fit_guess: (m,) of validation subjects, none of them judged.
        use_age: ``with_age`` instead of ``without_age``; then it is no accuracy (see above).
    """
    t, g = _inputs.pair(truth, guess)
    line = fit(fit_truth, fit_guess)
    return errors.mae(t, line.with_age(t, g) if use_age else line.without_age(g))
