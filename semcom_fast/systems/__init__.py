"""One folder per paper: its networks, training, evaluation and demonstration."""
