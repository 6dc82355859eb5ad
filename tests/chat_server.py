"""A server on loopback that speaks OpenAI's chat/completions, and fails in the ways wanted."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Says = Callable[["Asked"], Any]
"""Gives the text of an answer; or a ``Reply``."""


@dataclass(frozen=True)
class Asked:
    """One question as it came.

    Args:
        count: how many came before it.
        body: the whole request.
        key: the header Authorization.
        prompt: the question.
        image: (H, W, 3) uint8.
    """

    count: int
    body: dict[str, Any]
    key: str | None
    prompt: str
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Reply:
    """An answer that is not simply a text.

    Args:
        status: of HTTP.
        body: anything for JSON, or bytes as they are; None hangs up without a word.
        headers: of HTTP.
    """

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def chat(content: Any) -> dict[str, Any]:
    """The body of an answer whose message has this content."""
    message = {"role": "assistant", "content": content}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}


def error(message: str) -> dict[str, Any]:
    """The body of a failure."""
    return {"error": {"message": message, "type": "invalid_request_error"}}


class ChatServer(ThreadingHTTPServer):
    """The server.

    Args:
        says: gives the answers.
        models: what ``/models`` lists; None has no such list.

    Attributes:
        asked: all questions so far, in the order they came.
        most: how many were under way at the same time, at the most.
    """

    daemon_threads = True

    def __init__(self, says: Says, models: list[str] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says, self.models = says, models
        self.asked: list[Asked] = []
        self.most = self._active = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body: dict[str, Any], key: str | None) -> Reply:
        """Answer a question, and remember it."""
        with self._lock:
            asked = Asked(len(self.asked), body, key, *_content(body))
            self.asked.append(asked)
            self._active += 1
            self.most = max(self.most, self._active)
        try:
            said = self.says(asked)
        finally:
            with self._lock:
                self._active -= 1
        return said if isinstance(said, Reply) else Reply(200, chat(said))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


def _content(body: dict[str, Any]) -> tuple[str, NDArray[np.uint8]]:
    (message,) = body["messages"]
    parts = {part["type"]: part[part["type"]] for part in message["content"]}
    head, _, data = parts["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return parts["text"], np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        if self.path != "/v1/models" or self.server.models is None:
            self._send(Reply(404, error("no such page")))
            return
        listed = [{"id": name, "object": "model"} for name in self.server.models]
        self._send(Reply(200, {"object": "list", "data": listed}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._send(Reply(404, error("no such page")))
            return
        self._send(self.server.answer(body, self.headers.get("Authorization")))

    def _send(self, reply: Reply) -> None:
        if reply.body is None:
            self.close_connection = True
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(data))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def chat_server(says: Says, models: list[str] | None = None) -> Iterator[ChatServer]:
    """Run a server meanwhile."""
    with ChatServer(says, models) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
