"""A policy decision point for Envoy: every action of every agent is its own authorization event."""

__version__ = "0.1.0"
