"""The settings of the node that teaches the demo's prompt policy by reinforcement (arXiv 2212.09611, 2.3), on
`shapeworld.taste.training_inputs`."""

STEPS, PROMPTS, SEED = 100, 300, 96
"""Steps, user inputs to learn from, and seed."""
METHOD, LEARNING_RATE, KL_WEIGHT, KL_LIMIT = "group", 2e-4, 0.2, 40.0
"""The policy is a hundred times smaller than the paper's, so it learns faster, and it has to learn more: what people
like in this world is seldom in what they write."""
AT_ONCE, CANDIDATES = 6, 4
"""Prompts in a step, and candidates of each."""
ENOUGH = 0.65
"""The cosine of the demo's CLIP from which a picture fits its prompt: 39 of 40 pictures that were drawn for a prompt
have it. The paper's 0.28 is lower than that of most pictures of something else here."""
PICTURES, SAMPLER_STEPS, SIDE, CFG = 1, 8, 128, 4.0
