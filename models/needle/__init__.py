"""`needle`, the small retrieval model: its GGUF, and how it was trained."""
