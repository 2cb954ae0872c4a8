"""Facts in weights: keys and values of MLPs, neurons with gated keys, and how edits use them."""
