"""Assessments: what one may ask of a model. One file is one question; each gives :class:`~neuroprior.core.records.Score` rows."""
