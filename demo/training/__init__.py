"""How the demo models are trained. `demo/train.py` is the command."""
