"""Several classes against each other: the mean over classes of the area under the ROC curve of one class against all others."""

from __future__ import annotations

import numpy as np

from .auroc import auroc


def auroc_one_vs_rest(truth: np.ndarray, probability: np.ndarray) -> float:
    """Macro mean of the one-vs-rest AUROC over the classes that occur and do not fill the truth; NaN when there is none.

    With two classes both one-vs-rest values are the ordinary AUROC, and so is their mean.

    Args:
        truth: (n,) class numbers.
        probability: (n, classes) scores, larger for the class.
    """
    values = [auroc(truth == k, probability[:, k]) for k in range(probability.shape[1])]
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")
