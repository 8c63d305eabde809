"""Envoy configuration: an enforcement point in, a complete hardened bootstrap out."""
