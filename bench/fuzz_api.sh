#!/bin/sh
# Schemathesis over the OpenAPI document of a running server: bench/fuzz_api.sh http://127.0.0.1:8080
# More arguments go to schemathesis (--seed 1).  Needs `pip install schemathesis` (any environment).  Fails on any 5xx, on answers that are no JSON, and on crashes.
set -eu
url=$1
shift
exec "${SCHEMATHESIS:-schemathesis}" run "$url/openapi.json" --url "$url" --checks not_a_server_error,content_type_conformance \
    --phases examples,coverage,fuzzing --max-examples "${EXAMPLES:-100}" --generation-database none --no-color \
    --request-timeout 60 "$@"
