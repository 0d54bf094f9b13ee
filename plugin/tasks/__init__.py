"""Tasks: what is asked of a model, apart from how it is run."""
