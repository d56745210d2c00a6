"""Transforms: augmentation and artefacts of MRI. One file is one; drawing and doing are apart.

Every module has ``Config`` (ranges of severity in physical units), ``SPATIAL`` (whether voxels move, so that labels must move too),
``draw(config, rng, shape, spacing_mm) -> Draw`` (plain numbers, a function of the generator alone) and ``apply(drawn, images)``: a
float tensor (..., x, y, z) on any device to a new one of the same shape, the same for equal draws. A stored draw replays exactly.
Intensities are as conformed: about 0 on average, one standard deviation is 1, 0 outside the field of view. Spatial ones also have
``apply_labels(drawn, labels)`` for shares or integer labels.
"""
