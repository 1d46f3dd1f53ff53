"""The settings of the node that trains the demo's Cross-Adapter, on `shapeworld.captioned`."""

STEPS, BATCH, PEAK, RANK, TOKENS, ENTITY_WEIGHT, KEEP_WORDS = 6_000, 16, 1e-3, 20, 176, 0.01, 10
"""A dense caption has at most TOKENS tokens; nearly all captions of one thing have at most KEEP_WORDS words."""
