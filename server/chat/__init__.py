"""Messages to prompts and answers to messages: pure text, no HTTP, no llama.cpp."""
