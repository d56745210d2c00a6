"""Nets: encoders that name their stages and yield a Representation. One file is one family; sizes are values.

Every net module has ``Config``, ``build(config) -> nn.Module`` and ``with_skips(net) -> net``. A net answers:

- ``encode(x, noise=None, hidden=None) -> Representation``: x (B, 1, x, y, z) float32 of any size; with ``noise`` (two tensors
  of the halves' shape) a variational split gives reparameterised samples, without it the posterior means; ``hidden`` (bool, as
  x) are voxels that the net must not see;
- ``halves(stages) -> Representation``: both halves read from stages that are there already, without touching the encoder;
- ``decode(anatomy, contrast, size) -> (B, 1, x, y, z)``: a reconstruction from the two halves alone;
- ``reconstruct(representation, size) -> (B, 1, x, y, z)``: a reconstruction from all that the net has, skips included;
- ``decode_features(stages, code, skips) -> (B, feature_channels, x, y, z)``: the decoder's finest feature map;
- ``code_grid(size)``: cells (x, y, z) of the anatomy half, and of a contrast half that is not finer, for an input of ``size`` voxels;
- ``recompute`` (convolutional nets; 0 at first): of so many of the finest levels nothing but the result is kept for backward;
- ``lay_out(device, layout=None)`` (convolutional nets): in which memory format maps lie from now on; None is the fastest there;
- ``eight_bits()`` (convolutional nets): a context in which convolutions without gradients are of 8-bit integers, for a CPU that is quick in them;
- ``keep_factors(wanted)`` (convolutional nets): layers then have ``factors``, true while they hold what the gradient of their weights is made of
  (:mod:`._factors`), instead of that gradient: ``engine/optimisers.py: advance``;
- ``config`` (a :class:`~neuroprior.nets._split.SplitConfig`), ``stage_channels``, ``stage_strides``, ``feature_channels``,
  ``anatomy_channels``, ``contrast_channels``, ``about``.
"""
