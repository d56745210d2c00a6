"""``python -m neuroprior`` is the command ``neuroprior``."""

from .cli import main

if __name__ == "__main__":
    main()
