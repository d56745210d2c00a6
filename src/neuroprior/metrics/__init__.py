"""Metrics: two arrays in, a number out. One file is one family; nothing here knows of cases or files.

A number that is not defined (an empty mask, one class only) is NaN; what that means for a mean is decided by the rule
of :mod:`neuroprior.assessments.accuracy`, and counts stand beside every mean.
"""
