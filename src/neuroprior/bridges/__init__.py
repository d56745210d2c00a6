"""Bridges: our models out to where others run them, and theirs in. One file is one destination.

A bridge knows inference and nothing of training.
"""
