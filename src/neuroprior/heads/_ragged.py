"""Arithmetic over a ragged batch: rows that belong to cases."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_by_case(rows: Tensor, case: Tensor, n_cases: int) -> Tensor:
    """(N, ...) rows summed into (n_cases, ...); ``case`` (N,) int64 says whose row each is."""
    total = rows.new_zeros((n_cases, *rows.shape[1:]))
    return total.index_add(0, case, rows)


def mean_by_case(rows: Tensor, case: Tensor, n_cases: int) -> Tensor:
    """(N, ...) rows averaged into (n_cases, ...). Every case must have a row."""
    count = torch.zeros(n_cases, dtype=rows.dtype, device=rows.device)
    count = count.index_add(0, case, torch.ones(case.shape[0], dtype=rows.dtype, device=rows.device))
    return sum_by_case(rows, case, n_cases) / count.view(-1, *([1] * (rows.ndim - 1)))


def softmax_by_case(scores: Tensor, case: Tensor, n_cases: int) -> Tensor:
    """(N,) scores -> (N,) weights that sum to one over the rows of each case."""
    weights = (scores - scores.max().detach()).exp()
    return weights / sum_by_case(weights, case, n_cases)[case]
