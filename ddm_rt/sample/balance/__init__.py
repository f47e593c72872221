"""Which code each image gets: quotas, and the ledger that keeps them over requests."""
