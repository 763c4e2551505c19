"""Small parts of a connection: acknowledgements, pauses, addresses, the list of applications."""

import socket
import ssl

import pytest

from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from fleet_fn.subscription.acknowledgements import Acknowledgements, Window
from fleet_fn.subscription.applications import AllApplications
from fleet_fn.subscription.broker import Broker, describe
from fleet_fn.subscription.pauses import Pauses
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.subscriber import wait_for


def test_acknowledgements_are_due_in_the_order_of_the_messages() -> None:
    window, woken = Window(3), []
    acknowledgements = Acknowledgements(window, lambda: woken.append(1))
    first, second, unasked = (acknowledgements.expect(mid, qos) for mid, qos in ((7, 1), (8, 1), (0, 0)))
    fullness = [window.is_full]
    second()
    unasked()
    fullness.append(window.is_full)
    assert fullness == [True, False]
    assert list(acknowledgements.due()) == []
    first()
    assert list(acknowledgements.due()) == [7, 8]
    assert len(woken) == 3


def test_pauses_double_up_to_a_bound_and_are_random() -> None:
    low, high = Pauses(1, 60, floor=0.25, random=lambda: 0.0), Pauses(1, 60, random=lambda: 1.0)
    assert [high.seconds(attempts) for attempts in (1, 2, 3, 7, 10**6)] == [1, 2, 4, 60, 60]
    assert [low.seconds(attempts) for attempts in (1, 3, 7)] == [0.25, 1, 15]
    assert len({Pauses(1, 60).seconds(3) for _ in range(10)}) > 1


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("mqtts://broker.example", Broker("broker.example", 8883, None, True, None)),
        ("mqtt://[::1]:1884/", Broker("::1", 1884, None, False, None)),
        ("wss://broker.example", Broker("broker.example", 443, "/mqtt", True, None)),
        ("ws://broker.example:81/some/path", Broker("broker.example", 81, "/some/path", False, None)),
    ],
)
def test_urls_name_brokers(url: str, broker: Broker) -> None:
    assert Broker.of(url, None) == broker


def _tls_error() -> ssl.SSLError:
    """What OpenSSL says of a server that does not speak TLS."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ssl.SSLError) as caught:
            ssl.create_default_context().wrap_socket(ours, server_hostname="localhost")
    return caught.value


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (TimeoutError("timed out"), "no answer in time"),
        (socket.gaierror(-2, "Name or service not known"), "host not found"),
        (_tls_error(), "TLS handshake failed: WRONG_VERSION_NUMBER"),
        (ConnectionError("WebSocket handshake error"), "no connection: WebSocket handshake error"),
        (ValueError(), "no connection"),
    ],
)
def test_failures_are_told_in_words(error: Exception, problem: str) -> None:
    assert describe(error) == problem


def test_the_list_of_applications_follows_the_cloud() -> None:
    changes: list[frozenset[str]] = []
    with Drogue() as drogue:
        drogue.put("a", spec={})
        drogue.put("b", spec={})
        upstream = HttpClient("device registry", drogue.url, authorization=Fixed(basic(USER, TOKEN)))
        listed = AllApplications(upstream, ["b"], lambda: changes.append(listed.names()), looks=Pauses(0.01, 0.01))
        listed.start()
        try:
            wait_for(lambda: listed.names() == {"a"})
            drogue.put("c", spec={})
            wait_for(lambda: listed.names() == {"a", "c"})
            drogue.stop_listening()
            upstream.close()
            drogue.put("d", spec={})
            drogue.listen_again()
            wait_for(lambda: listed.names() == {"a", "c", "d"})
        finally:
            listed.end()
            upstream.close()
    assert changes[0] == {"a"}
