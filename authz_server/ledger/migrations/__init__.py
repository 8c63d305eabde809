"""The schema of a shared ledger in PostgreSQL, step by step; `ledger.migrate` runs it."""
