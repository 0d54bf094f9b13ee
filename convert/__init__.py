"""Writing layer scales into GGUF files."""
