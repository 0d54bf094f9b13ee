"""What an answer must look like: JSON schemas, regular expressions and grammars, held to by llguidance.

`parts` says what is wanted, `lark` and `gbnf` write it down as llguidance reads it, `schemas` settles what a JSON
schema means, `constraints` compiles the result and tells which tokens may come next.  Nothing here knows HTTP.
"""
