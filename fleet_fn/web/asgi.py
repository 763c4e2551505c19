"""The function as an ASGI application, for `func`, whose server speaks only ASGI."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from a2wsgi.wsgi import build_environ

from fleet_fn.deadline import Deadline
from fleet_fn.settings import MAX_WAITING, SPARE_THREADS, WORK_SHARE, Settings
from fleet_fn.web.arrival import DEADLINE, MAX_BODY_BYTES, MAX_DISCARDED_BYTES
from fleet_fn.web.wsgi import Application

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ASGIFunction:
    """The application behind ASGI 3's HTTP, with gunicorn's number of threads.

    A thread takes a whole request and returns a whole response, and never waits for the event loop. The threads of
    a2wsgi's middleware do: if the server ends its loop meanwhile, the thread waits for ever, and so does the process.

    `func`'s middleware answers `/health/liveness` and `/health/readiness` itself, with `alive` and `ready`.
    """

    def __init__(self, application: Application, settings: Settings) -> None:
        self._deadline_seconds = settings.event_deadline_seconds * WORK_SHARE
        self._application = application
        self._threads = ThreadPoolExecutor(settings.threads + MAX_WAITING + SPARE_THREADS, "requests")

    async def handle(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        deadline = Deadline(self._deadline_seconds)
        body = await _read(receive, deadline)
        environ = _build_environ(scope, body) | {DEADLINE: deadline}
        working = asyncio.get_running_loop().run_in_executor(self._threads, self._application.answer, environ)
        while not working.done():
            # A server that stops cancels requests before their deadline. The event is answered all the same: else it
            # would be delivered again although its command was sent.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(working)
        status, headers, content = working.result()
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": status.value, "headers": encoded})
        # Read the rest of the request meanwhile: the server would wait until it is read, and keep the connection.
        discarding = asyncio.create_task(_discard(receive))
        try:
            await send({"type": "http.response.body", "body": content})
        finally:
            discarding.cancel()

    def alive(self) -> tuple[bool, str]:
        """Return whether the process serves, and the body of the response."""
        return True, "ok\n"

    def ready(self) -> tuple[bool, str]:
        """Return whether the process can serve, and the body of the response.

        The state of upstreams does not matter.
        """
        return True, "ok\n"


# --- Requests ---------------------------------------------------------------------------------------------------------


class _Broken(io.RawIOBase):
    """A body that did not come whole.

    ASGI has no error for that: its last message looks like the end of a body.
    """

    def __init__(self, error: OSError) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise self._error


async def _read(receive: Receive, deadline: Deadline) -> io.IOBase:
    """Return the body, or enough of it to see that it is too large.

    Drop up to MAX_DISCARDED_BYTES of the rest.
    """
    body = bytearray()
    dropped = 0
    try:
        async with asyncio.timeout(deadline.remaining):
            while dropped <= MAX_DISCARDED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return _Broken(ConnectionResetError("the sender closed the connection"))
                piece: bytes = message.get("body", b"")
                kept = piece[: MAX_BODY_BYTES + 1 - len(body)]
                body += kept
                dropped += len(piece) - len(kept)
                if not message.get("more_body"):
                    break
    except TimeoutError as error:
        return io.BytesIO(body) if len(body) > MAX_BODY_BYTES else _Broken(error)
    return io.BytesIO(body)


async def _discard(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _build_environ(scope: Mapping[str, Any], body: io.IOBase) -> dict[str, Any]:
    """Return the request as a WSGI environment, without a query string.

    Like gunicorn, drop headers with an underscore: WSGI cannot tell `ce_id` from `ce-id`.
    """
    headers = [(name, value) for name, value in scope["headers"] if b"_" not in name]
    request: Any = {**scope, "headers": headers, "query_string": b""}
    whole: Any = body
    return {**build_environ(request, whole), "wsgi.input_terminated": True}
