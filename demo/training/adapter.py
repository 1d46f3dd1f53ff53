"""The settings of the node that trains the demo's Cross-Adapter, on `shapeworld.captioned`."""

STEPS, BATCH, PEAK, RANK, TOKENS, ENTITY_WEIGHT = 6_000, 16, 1e-3, 12, 176, 0.01
"""A dense caption has at most TOKENS tokens."""
