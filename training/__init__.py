"""Training of the pack's own models: the loop that all share, and what is special to each method."""
