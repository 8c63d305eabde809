"""The ledger: one durable record per decision, and the approvals that settle escalations."""
