"""From a model folder and scans to predictions in native space. Imports no training code."""
