"""The function as an ASGI application, for servers that speak nothing else."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from a2wsgi import WSGIMiddleware

from fleet_fn.app import OURS, create_app
from fleet_fn.deadline import Deadline
from fleet_fn.settings import MAX_WAITING, SPARE_THREADS, Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ASGIFunction:
    """The WSGI application behind ASGI 3's HTTP, with the threads that it has under gunicorn.

    Health is told as `func` asks for it: its middleware answers `/health/liveness` and `/health/readiness` itself, from
    `alive` and `ready`.
    """

    def __init__(self, settings: Settings) -> None:
        self._patience = settings.event_deadline * OURS
        threads = settings.threads + MAX_WAITING + SPARE_THREADS
        self._application: Any = WSGIMiddleware(_with_end_of_body(create_app(settings)), threads)

    async def handle(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request.

        A thread waits for the body, so that has to come, or to be given up, in an event's time. Either way the reader
        is told with an error: ASGI's own word for a sender that went away is a message without a body, which would pass
        for the end of one that is cut short.
        """
        deadline = Deadline(self._patience)

        async def receive_in_time() -> Message:
            message = await asyncio.wait_for(receive(), deadline.remaining)
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the sender went away")
            return message

        await self._application(scope, receive_in_time, send)

    def alive(self) -> tuple[bool, str]:
        """Whether the process serves, and the body that says so."""
        return True, "ok\n"

    def ready(self) -> tuple[bool, str]:
        """Whether it can serve, whatever its upstreams do, and the body that says so."""
        return True, "ok\n"


def _with_end_of_body(application: Any) -> Any:
    """`application`, told that its bodies end by themselves: otherwise Werkzeug takes one in chunks for empty."""

    def told(environ: Message, start_response: object) -> Any:
        environ["wsgi.input_terminated"] = True
        return application(environ, start_response)

    return told
