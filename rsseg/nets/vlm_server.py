"""A vision-language model behind a server that speaks OpenAI's protocol (chat/completions).

vLLM, llama.cpp, Ollama and many more do, on this machine or elsewhere. The key, where one is
needed, comes from the environment and goes nowhere but into the header of requests: it is in no
message, log, pickle or file.
"""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image

from rsseg.errors import InputError, RunError
from rsseg.nets.vision import RELATIVE, NoAnswerError
from rsseg.ops.answers import Coordinates

KEY_VARIABLE = "OPENAI_API_KEY"
_EXAMPLE = "http://localhost:8000/v1"
_LONGEST_WAIT = 60.0
"""Seconds between two attempts, at the most."""

_SAID = 160
"""Characters of a server's own words in a message."""

_SECRET = 6
"""Characters from which a key is one; servers without keys are given placeholders."""

_BUSY = {408, 409, 425, 429}
_REFUSED = {400, 413, 415, 422}


class _PassingError(Exception):
    """What may be over in a moment.

    Args:
        reason: in words.
        wait: seconds the server asks for, or 0.
    """

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Bearer(requests.auth.AuthBase):
    """Sends the key; being an ``auth``, it also keeps requests from looking into .netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key := _key():
            request.headers["Authorization"] = f"Bearer {key}"
        return request


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has.

    Args:
        url: of the API, like ``http://localhost:8000/v1``.
        model: the name by which the server knows it.
        coordinates: what it measures boxes in.
        max_tokens: longest answer, in tokens.
        timeout: seconds that the server may be silent.
        retries: how often a question is asked again when the server is busy, fails or is away.
        backoff: seconds before the first of these; twice as long before each further one.
        workers: questions under way at the same time.
        batch_size: images are asked about one by one.
    """

    url: str
    model: str
    coordinates: Coordinates
    max_tokens: int = 2048
    timeout: float = 300.0
    retries: int = 4
    backoff: float = 1.0
    workers: int = 4
    batch_size: int = 1

    @property
    def label(self) -> str:
        """Its name and the server's."""
        return f"{self.model} at {self.url}"

    @property
    def identity(self) -> dict[str, Any]:
        """The name alone: it may move to another server."""
        return {"served": self.model, "max_tokens": self.max_tokens}

    def prepare(self) -> None:
        """Nothing: the server is ready, or says that it is not."""

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Images are sent as they are, so their pixels are the model's."""
        return size if self.coordinates == "pixels" else RELATIVE

    def ask(self, images: Sequence[NDArray[np.uint8]], prompt: str) -> list[str]:
        """Ask about each image, one after the other; see ``VisionModel``."""
        return [self._answer(image, prompt) for image in images]

    def _answer(self, image: NDArray[np.uint8], prompt: str) -> str:
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}},
            {"type": "text", "text": prompt},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        wait = self.backoff
        for attempt in range(self.retries + 1):
            try:
                return self._posted(body)
            except _PassingError as passing:
                if attempt == self.retries:
                    raise NoAnswerError(f"{self.url}: {passing}") from None
                time.sleep(min(max(wait, passing.wait), _LONGEST_WAIT))
                wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def _posted(self, body: dict[str, Any]) -> str:
        try:
            reply = requests.post(
                f"{self.url}/chat/completions",
                json=body,
                auth=_Bearer(),
                timeout=self.timeout,
                allow_redirects=False,
            )
        except requests.ReadTimeout:  # the next wait would be as long
            raise NoAnswerError(f"{self.url}: no answer within {self.timeout:g} s") from None
        except requests.RequestException as error:
            raise _PassingError(f"no connection ({_cause(error)})") from None
        _check_status(reply, self.url, self.model)
        return _text_of(reply)


def _check_status(reply: requests.Response, url: str, model: str) -> None:
    status = reply.status_code
    if status == 200:
        return
    said = f"{status} {_said(reply)}"
    if status in _BUSY or status >= 500:
        raise _PassingError(said, _seconds(reply.headers.get("Retry-After")))
    if status in _REFUSED:
        raise NoAnswerError(f"{url}: {said}")
    if status in (401, 403):
        raise RunError(f"{url}: {said}; put a valid key into the variable {KEY_VARIABLE}")
    raise RunError(
        f"{url}: {said}; is the address right (most end in /v1), and is {model!r} there?"
    )


def _text_of(reply: requests.Response) -> str:
    """Return the text of an answer; one without any is empty."""
    try:
        content = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise _PassingError("the answer is not one of chat/completions") from None
    if isinstance(content, list):  # in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def served_model(url: str, model: str | None) -> tuple[str, str]:
    """Return the address of a server and the name of its model, after a look whether it is there.

    Args:
        url: as the user gives it.
        model: None takes the only one that the server has.

    Raises:
        InputError: no address, nobody there, no valid key, or no such model.
    """
    url = _checked(url)
    try:
        reply = requests.get(f"{url}/models", auth=_Bearer(), timeout=30, allow_redirects=False)
    except requests.RequestException as error:
        raise InputError(
            f"{url}: no connection ({_cause(error)}); start the server, or give its address"
        ) from None
    if reply.status_code in (401, 403):
        raise InputError(
            f"{url}: {reply.status_code} {_said(reply)}; put a valid key into the variable "
            f"{KEY_VARIABLE}"
        )
    return url, _only_model(reply, url) if model is None else model


def _only_model(reply: requests.Response, url: str) -> str:
    try:
        names = [str(one["id"]) for one in reply.json()["data"]]
    except (ValueError, LookupError, TypeError):
        names = []  # not all servers have a list
    if len(names) == 1:
        return names[0]
    has = f"it has {', '.join(names[:20])}" if names else "it does not say which it has"
    raise InputError(f"{url}: which model? {has}; give --vlm-model")


def _checked(url: str) -> str:
    if re.search(r"[@?#\s]", url):  # not shown, for it may hold a secret
        raise InputError(
            "the server's address has a user, password, ? or # in it; give it without, like "
            f"{_EXAMPLE}; keys go into the variable {KEY_VARIABLE}"
        )
    if not re.match(r"https?://[^/]", url):
        raise InputError(f"{url}: not an address; give one like {_EXAMPLE}")
    if not (_key().isascii() and _key().isprintable()):
        raise InputError(f"{KEY_VARIABLE} holds characters that no key has; set it again")
    return url.rstrip("/").removesuffix("/chat/completions")


def _data_url(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _said(reply: requests.Response) -> str:
    """Return in one line what a server says of its failure, without the key."""
    try:
        body = reply.json()
        error = body.get("error", body.get("detail", body))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = reply.text
    return _one_line(text) or str(reply.reason)


def _cause(error: BaseException) -> str:
    """Return what is at the bottom of a failure to connect; the wrappings are long."""
    while (inner := error.__context__ or getattr(error, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return _one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _one_line(text: str) -> str:
    """Return the beginning of a foreign text, without the key if that is in it."""
    key = _key()
    if len(key) >= _SECRET:
        text = text.replace(key, "***")
    return " ".join(text.split())[:_SAID]


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:
        return 0.0  # a date; the own pace will do
