"""The verbs: one file is one stage, and its function of the same name is the command line's subcommand.

Stages meet only through files on disk. Their modules import nothing heavy at the top, so that ``--help`` is instant.
"""
