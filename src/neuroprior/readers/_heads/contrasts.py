"""How bright each substance is in each contrast, and the ideal image that follows.

The numbers are no measurements; they keep the order that the physics of each sequence gives (white > grey > CSF in T1w,
CSF > grey > white in T2w, dark CSF in FLAIR and DWI, and so on), on a scale where about 1 is bright.
"""

from __future__ import annotations

import numpy as np

from .anatomy import Anatomy

BRIGHTNESS: dict[str, dict[str, float]] = {
    "T1w": {
        "csf": 0.14, "grey": 0.55, "white": 0.82, "fluid": 0.18, "fat": 1.0, "muscle": 0.46, "bone": 0.08, "eye": 0.16,
        "wmh": 0.64, "infarct": 0.47, "enhancing": 0.56, "necrosis": 0.26, "oedema": 0.60,
    },
    "T1ce": {
        "csf": 0.14, "grey": 0.58, "white": 0.82, "fluid": 0.40, "fat": 1.0, "muscle": 0.55, "bone": 0.08, "eye": 0.16,
        "wmh": 0.64, "infarct": 0.50, "enhancing": 1.15, "necrosis": 0.24, "oedema": 0.60,
    },
    "T2w": {
        "csf": 1.0, "grey": 0.56, "white": 0.38, "fluid": 0.85, "fat": 0.62, "muscle": 0.20, "bone": 0.05, "eye": 0.98,
        "wmh": 0.66, "infarct": 0.72, "enhancing": 0.66, "necrosis": 0.92, "oedema": 0.80,
    },
    "FLAIR": {
        "csf": 0.09, "grey": 0.60, "white": 0.44, "fluid": 0.14, "fat": 0.70, "muscle": 0.28, "bone": 0.05, "eye": 0.10,
        "wmh": 0.92, "infarct": 0.74, "enhancing": 0.72, "necrosis": 0.38, "oedema": 0.93,
    },
    "PDw": {
        "csf": 0.78, "grey": 0.86, "white": 0.68, "fluid": 0.74, "fat": 0.85, "muscle": 0.55, "bone": 0.08, "eye": 0.80,
        "wmh": 0.88, "infarct": 0.92, "enhancing": 0.85, "necrosis": 0.86, "oedema": 0.90,
    },
    "DWI": {
        "csf": 0.10, "grey": 0.52, "white": 0.41, "fluid": 0.10, "fat": 0.14, "muscle": 0.18, "bone": 0.03, "eye": 0.10,
        "wmh": 0.48, "infarct": 1.10, "enhancing": 0.62, "necrosis": 0.22, "oedema": 0.46,
    },
    "ADC": {
        "csf": 1.0, "grey": 0.28, "white": 0.25, "fluid": 0.80, "fat": 0.03, "muscle": 0.35, "bone": 0.02, "eye": 0.95,
        "wmh": 0.38, "infarct": 0.13, "enhancing": 0.34, "necrosis": 0.70, "oedema": 0.48,
    },
    "SWI": {
        "csf": 0.76, "grey": 0.68, "white": 0.54, "fluid": 0.45, "fat": 0.50, "muscle": 0.40, "bone": 0.04, "eye": 0.65,
        "wmh": 0.62, "infarct": 0.60, "enhancing": 0.50, "necrosis": 0.55, "oedema": 0.66,
    },
}  # fmt: skip
"""Contrast -> substance -> brightness."""

TEXTURE = {
    "T1w": 0.9, "T1ce": 0.9, "T2w": -0.6, "FLAIR": -0.35, "PDw": -0.4, "DWI": -0.3, "ADC": -0.05, "SWI": -0.5,
}  # fmt: skip
"""How strongly the texture that all contrasts share shows, and with which sign."""

PHASE = {name: 0.9 * place for place, name in enumerate(BRIGHTNESS)}


def ideal(anatomy: Anatomy, contrast: str) -> np.ndarray:
    """The noise-free image (x, y, z), float32, about 0 to 1.2, on the anatomy's grid; 0 outside the head.

    Two textures lie on it: one shared by all contrasts of the anatomy, and a weaker one of this contrast, made from the
    same fine grain so that it belongs to the subject and returns at every time point.
    """
    table = BRIGHTNESS[contrast]
    value = np.zeros(len(anatomy.grain), np.float32)
    for name, amount in anatomy.parts.items():
        value += np.float32(table[name]) * amount
    tissue = anatomy.parts["grey"] + anatomy.parts["white"]
    own = np.sin(2.2 * anatomy.grain + np.float32(PHASE[contrast]))
    value += tissue * (np.float32(TEXTURE[contrast]) * anatomy.texture + np.float32(0.012) * anatomy.grain)
    value *= 1 + np.float32(0.015) * own
    if contrast in ("SWI", "T1ce"):
        # Vessels lie where the grain crosses zero in the darker tissue.
        vessel = np.exp(-((anatomy.grain / 0.12) ** 2)) * (anatomy.texture < -0.02) * tissue
        value *= 1 + np.float32(-0.45 if contrast == "SWI" else 0.12) * vessel
    full = np.zeros(anatomy.inside.shape, np.float32)
    full[anatomy.inside] = np.clip(value, 0, None)
    return full
