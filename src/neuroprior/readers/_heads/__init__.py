"""The family of synthetic heads: people, anatomies, lesions, contrasts, scanners, and how they are written as BIDS."""
