"""The OpenAI-compatible server: an engine that knows no HTTP, routes that know no llama.cpp."""
