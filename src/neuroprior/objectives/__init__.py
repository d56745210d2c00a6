"""Objectives: learning without labels. One file is one objective.

Every module has ``Config`` and ``build(net, config) -> nn.Module`` whose ``forward(batch, *, epoch, seed)`` takes a
:class:`~neuroprior.data.records.PairBatch` and returns ``{"loss": ..., named parts}``. Masks and noise are functions of
(seed, purpose, sample number), so a batch's loss is the mean of its samples' whatever the batch they stand in.
``panels(batch, *, seed)`` returns images for people to look at.
"""
