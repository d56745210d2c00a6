"""Tasks: learning with labels. One file is one task; each has ``Config`` and ``fit(store, sessions, target, contrasts, config)``.

``fit`` reads the targets of the training sessions and returns a ``Task``: what the head must be, which cases carry a
target, the loss, and the description that goes into the model folder so that inference can decode without this package.
"""
