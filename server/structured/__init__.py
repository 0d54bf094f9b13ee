"""Grammars and JSON schemas that an answer must follow."""
