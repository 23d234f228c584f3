"""A server for tests of gateways, which echoes what it is sent."""

import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from patches.headers import PATCH_HEADER


class Replica:
    """A server that says what came, and is ready, or refuses everything, as a test wants it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_in_step = True
        self.num_asked = 0
        app = Starlette(
            routes=[
                Route("/ready", self._ready),
                Route("/{path:path}", self._echo, methods=["GET", "POST"]),
            ]
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> "Replica":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    async def _ready(self, request: Request) -> JSONResponse:
        return JSONResponse({}, 200 if self.is_in_step else 503)

    async def _echo(self, request: Request) -> JSONResponse:
        self.num_asked += 1
        sent = {
            "name": self.name,
            "headers": request.headers.items(),
            "body": (await request.body()).decode(),
        }
        return JSONResponse(sent, 200 if self.is_in_step else 503, {PATCH_HEADER: "pirate@1.0.0"})
