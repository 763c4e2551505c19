"""Who gives out tokens for a registry, and a registry that wants to see them."""

import base64
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, parse_qsl, urlsplit

from fleet_fn.deadline import Deadline
from fleet_fn.http.head import Head
from fleet_fn.http.messages import Answer as HttpAnswer
from tests.support.http import Answer, Request, Response
from tests.support.timing import Clock

_numbers = itertools.count(1)


@dataclass(frozen=True)
class _Token:
    scopes: tuple[str, ...]
    until: float


class TokenRealm:
    """Gives tokens for what it is asked for, to everybody, or to those with the right credentials.

    Args:
        url: where it will be.
        credentials: user and password that it wants; None for everybody.
        lifetime: seconds for which a token is valid.

    """

    def __init__(self, url: str, *, credentials: tuple[str, str] | None = None, lifetime: int = 300) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.tokens: dict[str, _Token] = {}
        self._credentials = credentials
        self._lifetime = lifetime

    def __call__(self, request: Request) -> Response:
        """What it answers itself."""
        self.requests.append(request)
        if self._credentials and request.headers.get("Authorization") != basic(*self._credentials):
            return Response(401, b'{"details": "incorrect username or password"}')
        scopes = tuple(parse_qs(urlsplit(request.path).query).get("scope", ()))
        token = f"{SECRET_TOKEN}-{next(_numbers)}"
        self.tokens[token] = _Token(scopes, time.monotonic() + self._lifetime)
        return Response(200, json.dumps({"token": token, "expires_in": self._lifetime}).encode())

    def guard(self, name: str, answer: Answer) -> Answer:
        """What the registry answers for a repository: `answer` to those with a token for it."""
        scope = f"repository:{name}:pull"

        def guarded(request: Request) -> Response | None:
            scheme, _, value = request.headers.get("Authorization", "").partition(" ")
            token = self.tokens.get(value)
            if scheme == "Bearer" and token and scope in token.scopes and time.monotonic() < token.until:
                return answer(request)
            challenge = f'Bearer realm="{self.url}",service="registry.example",scope="{scope},push"'
            return Response(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}', {"WWW-Authenticate": challenge})

        return guarded


#: What all tokens begin with.
SECRET_TOKEN: Final = "s3cret-token"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def guarded_by(authorization: str, challenge: str, answer: Answer) -> Answer:
    """`answer` to those who show the right `Authorization`."""

    def guarded(request: Request) -> Response | None:
        if request.headers.get("Authorization") == authorization:
            return answer(request)
        return Response(401, headers={"WWW-Authenticate": challenge})

    return guarded


def answered(status: int = 200, body: bytes = b"") -> HttpAnswer:
    return HttpAnswer(status, Head(), body)


@dataclass
class FakeRealm:
    """A realm without sockets: answers with numbered tokens, or as a test says."""

    clock: Clock = field(default_factory=Clock)
    #: Seconds that an answer takes.
    takes: float = 0.0
    #: What an answer has besides the token.
    more: Mapping[str, object] = field(default_factory=dict)
    answer: Callable[[], HttpAnswer] | None = None
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def __call__(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> HttpAnswer:  # noqa: ARG002
        self.asked.append((url, headers))
        number = len(self.asked)
        self.clock.now += self.takes
        if self.answer:
            return self.answer()
        return answered(body=json.dumps({"token": f"token{number}", **self.more}).encode())

    @property
    def query(self) -> list[tuple[str, str]]:
        """What the last request asked for."""
        return parse_qsl(urlsplit(self.asked[-1][0]).query, keep_blank_values=True, strict_parsing=True)

    @property
    def was_shown(self) -> str | None:
        """The credentials that the last request carried."""
        return self.asked[-1][1].get("Authorization")
