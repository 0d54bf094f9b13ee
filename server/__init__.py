"""The OpenAI-compatible server.

`engine` runs texts on llama.cpp and knows no HTTP, `openai` is the API over HTTP and knows no llama.cpp; `chat` makes
prompts of messages and messages of answers, `structured` grammars of schemas.
"""
