"""From a policy to everything a run needs, resolved and checked without loading a weight."""
