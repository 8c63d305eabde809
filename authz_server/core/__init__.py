"""The pure core: parses, verifies and decides. No I/O, clock, randomness, logging or global state.

Nothing here imports another room of this package.
"""
