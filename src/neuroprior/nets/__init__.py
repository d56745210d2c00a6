"""Nets: encoders that name their stages and yield a Representation. One file is one family; sizes are values.

Every net module has ``Config``, ``build(config) -> nn.Module`` and ``with_skips(net) -> net``. A net answers:

- ``encode(x, noise=None) -> Representation``: x (B, 1, x, y, z) float32 of any size; with ``noise`` (two tensors of the
  halves' shape) a variational split gives reparameterised samples, without it the posterior means;
- ``decode(anatomy, contrast, size) -> (B, 1, x, y, z)``: a reconstruction from the two halves alone;
- ``decode_features(stages, code, skips) -> (B, C0, x, y, z)``: the decoder's finest feature map;
- ``code_shape(size)``: (channels, x, y, z) of each half for an input of ``size`` voxels;
- ``config``, ``stage_channels``, ``stage_strides``, ``anatomy_channels``, ``contrast_channels``, ``about``.
"""
