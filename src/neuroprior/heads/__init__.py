"""Heads: what a task puts on top of a representation. One file is one head; inference loads them without any training code.

Every head module has ``Config`` and ``build(config) -> nn.Module`` whose
``forward(net, representation, case, contrast, n_cases)`` takes a *ragged* batch: row n of the representation is the
scan of case ``case[n]`` (0 .. n_cases - 1) in contrast number ``contrast[n]`` (its place in ``config.contrasts``). A
contrast that a case does not have has no row: it is absent, never zeros. The output has one row a case.
"""
