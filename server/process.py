"""The process around the server: listening, signals, the end and its exit code."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ropebend.errors import RopebendError
from ropebend.server.engine import Engine

log = logging.getLogger("ropebend.server")


def run(server: Server, engine: Engine, hosts: Sequence[str], port: int) -> None:
    """Listen, load and serve until a signal.  RopebendError if the port is taken, loading fails or the engine dies.

    port: 0 is a free one, the same for all hosts.
    """
    listeners: list[socket.socket] = []
    for host in hosts:
        listeners.append(listen(host, port))
        port = listeners[0].getsockname()[1]
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)
    urls = ", ".join(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts)
    log.info("listening on %s, loading %s", urls, engine.options.model)
    engine.start()
    server.run(sockets=listeners)
    ended = engine.stop(timeout=1)
    if engine.failure is not None:
        raise RopebendError(engine.failure)
    log.info("stopped")
    if not ended:
        # The thread is inside llama.cpp (a long decode, or still loading), which cannot be interrupted, and the
        # interpreter must not take the library down under it.
        logging.shutdown()
        os._exit(0)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """False for the traceback that uvicorn logs of a request it cut itself, because the client reads too slowly."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class Server(uvicorn.Server):
    """uvicorn with our end: exit 0 after a signal, requests cut after the grace, a second signal ends at once.

    grace: seconds that open requests may go on after a signal; debug: log each access.
    """

    def __init__(self, app: FastAPI, engine: Engine, grace: float, *, debug: bool):
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level="debug" if debug else "warning",
            access_log=debug,
            # room for the answers of the requests that `cut` ended: they take milliseconds, but not on a busy machine
            timeout_graceful_shutdown=math.ceil(grace) + 5,
        )
        super().__init__(config)
        self._engine = engine
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: end with grace; a second one ends at once."""
        # uvicorn's own would raise the signal again at the end, and the exit code would not be 0.
        if self.should_exit:
            os._exit(1)
        log.info("%s: finishing open requests, at most %g s", signal.Signals(sig).name, self._grace)
        self.should_exit = True

    def end_now(self) -> None:
        """End without the grace; there is nothing to wait for but the answers that say why."""
        self.config.timeout_graceful_shutdown = 2
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish open requests, those that take longer than the grace with an error."""
        cut = asyncio.get_running_loop().call_later(self._grace, self._engine.cut)
        await super().shutdown(sockets)
        cut.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.  RopebendError if the address is unknown or taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family)
        # asyncio turns Nagle's algorithm off only on sockets that say they are TCP; accepted ones are what this one is.
        # With it each answer on a kept connection takes 40 ms more.
        return socket.socket(listener.family, listener.type, socket.IPPROTO_TCP, fileno=listener.detach())
    except socket.gaierror as e:
        reason = e.strerror
    except OSError as e:
        reason = os.strerror(e.errno or 0)  # its own text may be longer, with the address in Python's notation
    except UnicodeError:
        reason = "not a host name"
    raise RopebendError(f"cannot listen on {host}:{port}: {reason}; see --host and --port")
