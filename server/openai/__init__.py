"""The OpenAI API over HTTP: requests in, answers out.  It knows no llama.cpp."""
