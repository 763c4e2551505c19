"""A WSGI application of a few fixed paths, and its responses.

A web framework would cost a quarter of the start's time and a seventh of the memory.
"""

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Response(NamedTuple):
    """The response to a request."""

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes = b""


def make_response(status: HTTPStatus, content: str | bytes, content_type: str) -> Response:
    """Return a response with content, and with its type and length."""
    body = content if isinstance(content, bytes) else content.encode()
    return Response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))], body)


class Application:
    """Answers the requests to each path by a view for their method.

    Any request may begin its path with several slashes.
    """

    def __init__(
        self,
        views: "Mapping[str, Mapping[str, Callable[[WSGIEnvironment], Response]]]",
        refuse: "Callable[[WSGIEnvironment, HTTPStatus], Response]",
    ) -> None:
        """Answer with `views`, by path and method; `refuse` the rest with 404 or 405."""
        self._views = views
        self._refuse = refuse

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request, as WSGI calls it."""
        status, headers, body = self.answer(environ)
        start_response(f"{status.value} {status.phrase}", headers)
        return (body,) if body else ()

    def answer(self, environ: "WSGIEnvironment") -> Response:
        """Return the response to a request."""
        method = environ["REQUEST_METHOD"]
        views = self._views.get("/" + environ["PATH_INFO"].lstrip("/"))
        if views is None:
            return self._refuse(environ, HTTPStatus.NOT_FOUND)
        if view := views.get(method):
            return view(environ)
        if method == "HEAD" and (view := views.get("GET")):
            return view(environ)._replace(body=b"")
        response = self._refuse(environ, HTTPStatus.METHOD_NOT_ALLOWED)
        allowed = [*views, "HEAD"] if "GET" in views else list(views)
        response.headers.append(("Allow", ", ".join(allowed)))
        return response
