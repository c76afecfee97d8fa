"""Roles, signed requests, the ledger and the run's coordinator. No torch."""
