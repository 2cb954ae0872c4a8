"""The one place where a change of weights meets a model."""
