"""What goes into a model: images, prompts, tokens, and sets of both to calibrate and bench with."""
