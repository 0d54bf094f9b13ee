"""One command from a model to a scaled model: what `ropebend tune` decides on the way."""
