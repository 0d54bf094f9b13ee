# The README's commands in a container. Not built yet (no Docker engine was at hand).
#   docker build -t ropebend .
#   docker run --rm -p 8080:8080 -v "$PWD:/models" ropebend serve /models/model.ropebend.gguf --host 0.0.0.0
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /ropebend
COPY . .
RUN make
ENTRYPOINT ["/ropebend/.venv/bin/ropebend"]
CMD ["--help"]
