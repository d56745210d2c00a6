"""The loop that knows no brains: optimisers, schedules, exact resume, events, ledger, on Lightning."""
