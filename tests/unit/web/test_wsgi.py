"""The application's paths and methods, as WSGI asks for them."""

from http import HTTPStatus
from typing import Any

import pytest
from werkzeug.test import run_wsgi_app

from fleet_fn.web.wsgi import Application, Response, make_response


def refuse(_: object, status: HTTPStatus) -> Response:
    return make_response(status, "refused", "text/plain")


def show(environ: Any) -> Response:
    return make_response(HTTPStatus.OK, environ["REQUEST_METHOD"], "text/plain")


def take(_: object) -> Response:
    return Response(HTTPStatus.NO_CONTENT, [("Taken", "yes")])


APPLICATION = Application({"/": {"POST": take}, "/shown": {"GET": show, "PUT": show}}, refuse)


def ask(method: str, path: str) -> tuple[str, dict[str, str], bytes]:
    """The status, the headers and the body of an answer."""
    body, status, headers = run_wsgi_app(APPLICATION, {"REQUEST_METHOD": method, "PATH_INFO": path})
    return status, dict(headers), b"".join(body)


@pytest.mark.parametrize("path", ["/shown", "//shown", "///shown"])
def test_a_view_answers_its_path_however_many_slashes_begin_it(path: str) -> None:
    headers = {"Content-Type": "text/plain", "Content-Length": "3"}
    assert ask("GET", path) == ("200 OK", headers, b"GET")
    assert ask("PUT", path) == ("200 OK", headers, b"PUT")


def test_head_is_a_get_without_the_body() -> None:
    assert ask("HEAD", "/shown") == ("200 OK", {"Content-Type": "text/plain", "Content-Length": "4"}, b"")


@pytest.mark.parametrize("path", ["", "/", "//"])
def test_the_root_needs_no_slash(path: str) -> None:
    assert ask("POST", path) == ("204 No Content", {"Taken": "yes"}, b"")


@pytest.mark.parametrize("path", ["/shown/", "/Shown", "/shown/more", "/elsewhere", "shown?"])
def test_another_path_is_refused(path: str) -> None:
    assert ask("GET", path)[0] == "404 Not Found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/shown", "GET, PUT, HEAD"),
        ("OPTIONS", "/shown", "GET, PUT, HEAD"),
        ("GET", "/", "POST"),
        ("HEAD", "/", "POST"),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(method: str, path: str, allowed: str) -> None:
    status, headers, _ = ask(method, path)
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", allowed)
