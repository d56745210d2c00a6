"""Resampling between two grids slab by slab, with the same numbers as all at once.

A map with many classes at full resolution does not fit into memory; a slab of it does. :class:`Slabs` cuts the target grid into
slabs along the axis that runs along the source's first axis, in the order in which the source's rows arrive, and says which rows
each slab needs. The weights are those that :func:`core.resampling.resample` computes for the whole, so the voxels are equal bit for
bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .grids import Grid
from .relations import Separable, Slices, relate
from .resampling import product, span, weights_along


@dataclass(frozen=True)
class Slab:
    """A part of the target grid and what it is made from.

    Attributes:
        where: its voxels in the target grid.
        first, last: the source rows (first axis) that it needs, ``last`` exclusive.
        weights: the matrix of each target axis, or None where voxels are copied.
        columns: per target axis the (turned) source voxels that are taken, relative to ``first`` along the slab's axis.
    """

    where: Slices
    first: int
    last: int
    weights: tuple[sparse.csr_array | None, ...]
    columns: Slices


class Slabs:
    """Linear resampling from ``source`` to ``target``, in slabs.

    Args:
        source: grid whose rows along the first axis become available one after the other.
        target: grid with the same axes up to permutation and flips (a scan's native grid and its conformed grid have them).
        thickness: target voxels along the slab's axis.

    Raises:
        ValueError: the axes of the grids differ.
    """

    def __init__(self, source: Grid, target: Grid, thickness: int) -> None:
        relation = relate(source, target)
        if not isinstance(relation, Separable):
            raise ValueError("slabs need grids that share their axes; bring the scan to its own canonical grid first")
        self._axes = relation.axes
        self._flips = tuple(slice(None, None, -1) if axis.flip else slice(None) for axis in relation.along)
        self.axis: int = relation.axes.index(0)
        """The target axis that runs along the source's first axis."""
        counts = [axis.last - axis.first for axis in relation.along]
        whole: list[sparse.csr_array | None] = [
            None if axis.exact or count == 0 else weights_along(axis, 1)
            for axis, count in zip(relation.along, counts, strict=True)
        ]
        self.slabs: tuple[Slab, ...] = ()
        """The slabs in the order in which the source's rows arrive; target voxels out of the source's view are in none."""
        if min(counts) == 0:
            return
        found = []
        for low in range(0, counts[self.axis], thickness):
            high = min(low + thickness, counts[self.axis])
            where, weights, columns = [], [], []
            first = last = 0
            for k, (axis, matrix) in enumerate(zip(relation.along, whole, strict=True)):
                a, b = (low, high) if k == self.axis else (0, counts[k])
                where.append(slice(axis.first + a, axis.first + b))
                if matrix is None:
                    start, stop = axis.first + int(axis.offset) + a, axis.first + int(axis.offset) + b
                    weights.append(None)
                else:
                    rows = matrix[a:b]
                    start, stop = span(rows)
                    weights.append(sparse.csr_array(rows[:, start:stop]))
                if k == self.axis:
                    first, last = (axis.n_source - stop, axis.n_source - start) if axis.flip else (start, stop)
                    columns.append(slice(None))
                else:
                    columns.append(slice(start, stop))
            x, y, z = where
            cx, cy, cz = columns
            found.append(Slab((x, y, z), first, last, tuple(weights), (cx, cy, cz)))
        self.slabs = tuple(reversed(found)) if relation.along[self.axis].flip else tuple(found)

    def sample(self, slab: Slab, rows: np.ndarray) -> np.ndarray:
        """A slab's voxels.

        Args:
            slab: one of ``slabs``.
            rows: (last - first, y, z) the source's rows ``first`` to ``last``, any numeric dtype.

        Returns:
            float32 array of the shape of ``slab.where``.
        """
        values = rows.transpose(self._axes)[self._flips][slab.columns]
        return product(values, list(slab.weights))
