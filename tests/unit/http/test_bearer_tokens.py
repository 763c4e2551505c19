"""BearerTokens: lifetimes, shared fetches and failures, threads; and the reading of an answer with a token."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError, UpstreamError
from fleet_fn.http.bearer_tokens import BearerTokens, Token, read_token
from tests.support.timing import Clock, SignalingDeadline

LIFETIME = 100


@dataclass
class Server:
    """Issues numbered tokens, or fails."""

    clock: Callable[[], float] = field(default_factory=Clock)
    error: UpstreamError | None = None
    asked: int = 0

    def __call__(self) -> Token:
        since = self.clock()
        self.asked += 1
        if self.error:
            raise self.error
        return Token.issued(f"t{self.asked}", LIFETIME, since)


def never(_: UpstreamError) -> None:
    """The negative TTL of failures that callers do not share."""


def bearer_tokens(
    negative_ttl: Callable[[UpstreamError], float | None] = never, clock: Callable[[], float] = time.monotonic
) -> BearerTokens:
    return BearerTokens("token endpoint", negative_ttl, clock)


def take(
    tokens: BearerTokens, fetch: Callable[[], Token], refused: str | None = None, deadline: Deadline | None = None
) -> str:
    with tokens.turn(refused, deadline or Deadline(30)) as known:
        return (known or tokens.renew(fetch)).header


# --- Lifetimes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "used"),
    [
        (300, 290),
        (41, 31),
        (40, 30),
        (20, 15),
        (1, 0.75),
        (24 * 60 * 60 + 1, 86390),
        (10**400, 86390),
        (None, 50),
        (0, 50),
        (-1, 50),
        (300.5, 50),
        (True, 50),
        ("300", 50),
        ([], 50),
    ],
)
def test_token_is_valid_until_shortly_before_its_end(stated: object, used: float) -> None:
    clock = Clock()
    tokens = bearer_tokens(clock=clock)
    token = Token.issued("t", stated, clock.now)
    clock.now += 0.5  # what the answer took
    take(tokens, lambda: token)
    clock.now = token.since + used - 0.01
    assert tokens.valid() == token
    clock.now = token.since + used
    assert tokens.valid() is None
    assert tokens.last == token


def test_refused_token_is_not_valid() -> None:
    tokens, server = bearer_tokens(), Server(time.monotonic)
    assert take(tokens, server) == "Bearer t1"
    assert tokens.valid("Bearer t1") is None
    assert tokens.valid("Bearer t0") == tokens.valid() == tokens.last


@dataclass
class Model:
    """What `BearerTokens` promises to callers that come one after the other."""

    negative_ttl: float
    token: tuple[int, float] | None = None
    failed: float | None = None
    asked: int = 0

    def take(self, now: float, refused: str | None, *, fails: bool) -> str:
        if self.token and refused != f"Bearer t{self.token[0]}" and now < self.token[1] + LIFETIME - 10:
            return f"Bearer t{self.token[0]}"
        if self.failed is not None and now < self.failed + self.negative_ttl:
            return "no"
        self.asked += 1
        if fails:
            self.failed = now
            return "no"
        self.token = self.asked, now
        return f"Bearer t{self.asked}"


steps = st.tuples(
    st.sampled_from([0, 0, 1, 5, 10, 45, 90, 200]),  # seconds since the step before
    st.integers(-1, 8).map(lambda number: f"Bearer t{number}" if number >= 0 else None) | st.just("last"),  # refused
    st.booleans(),  # whether a fetch fails
)


@given(negative_ttl=st.sampled_from([0.0, 1.0, 10.0]), steps=st.lists(steps, max_size=12))
def test_calls_one_by_one_follow_the_model(negative_ttl: float, steps: list[tuple[float, str | None, bool]]) -> None:
    server, model, clock = Server(), Model(negative_ttl), Clock()
    server.clock = clock
    tokens = bearer_tokens(lambda _: negative_ttl, clock)
    for wait, which, fails in steps:
        clock.now += wait
        refused = tokens.last.header if which == "last" and tokens.last else which
        server.error = PermanentError("no") if fails else None
        try:
            got = take(tokens, server, refused)
        except PermanentError as error:
            got = error.reason
        assert got == model.take(clock.now, refused, fails=fails)
        assert server.asked == model.asked


def test_each_caller_gets_an_error_of_its_own() -> None:
    server, clock = Server(error=PermanentError("no")), Clock()
    tokens = bearer_tokens(lambda _: 10.0, clock)
    errors = []
    for _ in range(3):
        with pytest.raises(PermanentError) as raised:
            take(tokens, server)
        errors.append(raised.value)
    assert len({id(error) for error in errors}) == 3
    assert server.asked == 1


def test_kept_failure_does_not_keep_frames_alive() -> None:
    tokens = bearer_tokens(lambda _: 10.0)
    with pytest.raises(PermanentError):
        take(tokens, Server(error=PermanentError("no")))
    kept = tokens._failure
    assert kept
    assert kept[1].__traceback__ is None


def test_foreign_error_ends_the_turn_and_is_not_kept() -> None:
    tokens = bearer_tokens(lambda _: 10.0)

    def broken() -> Token:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        take(tokens, broken)
    assert take(tokens, Server(time.monotonic), deadline=Deadline(0)) == "Bearer t1"


# --- Threads ----------------------------------------------------------------------------------------------------------


class Held:
    """A server that holds its first answer back until the test opens it."""

    def __init__(self, first: UpstreamError | None = None) -> None:
        self.server = Server(time.monotonic, first)
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> Token:
        if not self.reached.is_set():
            self.reached.set()
            assert self.opened.wait(30)
            try:
                return self.server()
            finally:
                self.server.error = None
        return self.server()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def take_at_once(tokens: BearerTokens, held: Held, threads: ThreadPoolExecutor) -> list[str]:
    """Return what eight callers get, of whom seven wait for the fetch of the first."""
    waiting = threading.Semaphore(0)

    def ask(deadline: Deadline) -> str:
        try:
            return take(tokens, held, deadline=deadline)
        except UpstreamError as error:
            return error.reason

    first = threads.submit(ask, Deadline(30))
    assert held.reached.wait(30)
    others = [threads.submit(ask, SignalingDeadline(30, waiting)) for _ in range(7)]
    for _ in others:
        assert waiting.acquire(timeout=30)
    held.opened.set()
    return [result.result() for result in [first, *others]]


def test_waiting_callers_share_a_token(threads: ThreadPoolExecutor) -> None:
    held = Held()
    assert take_at_once(bearer_tokens(), held, threads) == ["Bearer t1"] * 8
    assert held.server.asked == 1


@pytest.mark.parametrize("negative_ttl", [0.0, 10.0])
def test_waiting_callers_share_a_failure(threads: ThreadPoolExecutor, negative_ttl: float) -> None:
    held = Held(PermanentError("no"))
    tokens = bearer_tokens(lambda _: negative_ttl)
    assert take_at_once(tokens, held, threads) == ["no"] * 8
    assert held.server.asked == 1
    if negative_ttl:
        with pytest.raises(PermanentError, match=r"^no$"):
            take(tokens, held)
    else:
        assert take(tokens, held) == "Bearer t2"  # who comes later asks anew


def test_waiting_callers_do_not_share_an_exempt_failure(threads: ThreadPoolExecutor) -> None:
    held = Held(TransientError("no answer in time"))
    assert take_at_once(bearer_tokens(), held, threads) == ["no answer in time"] + ["Bearer t2"] * 7
    assert held.server.asked == 2


def test_exempt_failure_does_not_replace_a_kept_one() -> None:
    clock = Clock()
    server = Server(clock)
    tokens = bearer_tokens(lambda error: 10.0 if isinstance(error, RateLimitedError) else None, clock)
    for error in (RateLimitedError("kept"), PermanentError("exempt")):
        server.error = error
        with pytest.raises(RateLimitedError, match=r"^kept$"):
            take(tokens, server)
    clock.now += 10
    with pytest.raises(PermanentError, match=r"^exempt$"):
        take(tokens, server)
    server.error = None
    assert take(tokens, server) == "Bearer t3"


def test_caller_waits_until_its_own_deadline(threads: ThreadPoolExecutor) -> None:
    held, tokens = Held(), bearer_tokens()
    slow = threads.submit(take, tokens, held)
    assert held.reached.wait(30)
    deadline = Deadline(0.1)
    with pytest.raises(TransientError, match=r"^token endpoint: an earlier request for a token has not ended$"):
        take(tokens, held, deadline=deadline)
    assert 0.1 <= deadline.elapsed < 2
    assert tokens.valid() is None  # without a wait
    held.opened.set()
    assert slow.result() == "Bearer t1"


@pytest.mark.parametrize("seed", range(3))
def test_threads_refuse_and_fail_without_a_needless_fetch(seed: int) -> None:
    """One thread fetches at a time, no thread gets the token that it was refused, and each refusal costs one fetch."""
    tokens = bearer_tokens(lambda _: 0.0)
    fetching, asked, replaced = threading.Lock(), 0, set()

    def fetch() -> Token:
        nonlocal asked
        assert fetching.acquire(blocking=False), "two threads fetch at once"
        try:
            asked += 1
            number = asked
            time.sleep(0)  # lets another thread run
            if number % 5 == 0:
                raise PermanentError("no")
            return Token.issued(f"t{number}", LIFETIME, time.monotonic())
        finally:
            fetching.release()

    def work(thread: int) -> int:
        choose = random.Random(f"{seed} {thread}")
        refused: str | None = None
        failures = 0
        for _ in range(300):
            try:
                got = take(tokens, fetch, refused)
            except PermanentError:
                failures += 1
                continue
            assert got != refused
            refused = got if choose.random() < 0.3 else None
            if refused:
                replaced.add(refused)
        return failures

    with ThreadPoolExecutor(8) as pool:
        failures = sum(pool.map(work, range(8)))
    # The first token, one for each that was refused, and failed attempts.
    assert asked - asked // 5 <= 1 + len(replaced)
    assert failures >= asked // 5


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "token"),
    [
        (b'{"token": "t"}', "t"),
        (b'{"access_token": "t"}', "t"),
        (b'{"token": "t", "access_token": "other"}', "t"),
        (b'{"token": "", "access_token": "t"}', "t"),
        (b'{"token": null, "access_token": "t", "expires_in": 5}', "t"),
        (b'{"token": "%s"}' % bytes(range(ord("#"), ord("["))), "".join(map(chr, range(ord("#"), ord("["))))),
        (b'{"token": "%s"}' % (b"t" * 65536), "t" * 65536),
    ],
)
def test_token_is_read_from_the_first_member_that_has_one(body: bytes, token: str) -> None:
    assert read_token(body, "the answer", ["token", "access_token"])[0] == token


def test_all_members_of_the_answer_are_returned() -> None:
    assert read_token(b'{"token": "t", "expires_in": 5}', "", ["token"])[1] == {"token": "t", "expires_in": 5}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is no JSON object"),
        (b"\xffs3cret", "is no JSON object"),
        (b'"s3cret"', "is no JSON object"),
        (b'["s3cret"]', "is no JSON object"),
        (b'{"token": "s3cret', "is no JSON object"),
        (b'{"token": "s3cret", "token": "s3cret"}', "is no JSON object"),
        (b'{"token": "s3cret", "expires_in": NaN}', "is no JSON object"),
        (b"[" * 100_000, "is no JSON object"),
        (b'{"other": "s3cret"}', "has no token that a header can carry"),
        (b'{"token": ""}', "has no token that a header can carry"),
        (b'{"token": 5}', "has no token that a header can carry"),
        (b'{"token": ["s3cret"]}', "has no token that a header can carry"),
        (b'{"token": "s3cret s3cret"}', "has no token that a header can carry"),
        (b'{"token": "s3cret\\n"}', "has no token that a header can carry"),
        (b'{"token": "s3cret\\u007f"}', "has no token that a header can carry"),
        (b'{"token": "' + b"s" * 65537 + b'"}', "has no token that a header can carry"),
    ],
)
def test_malformed_answer_fails_without_a_quotation(body: bytes, problem: str) -> None:
    with pytest.raises(PermanentError, match=f"^the answer {problem}$") as raised:
        read_token(body, "the answer", ["token", "access_token"])
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_token_is_not_in_reprs() -> None:
    tokens = bearer_tokens()
    take(tokens, lambda: Token.issued("s3cret", 60, tokens.clock()))
    assert "Token(" in repr(tokens)
    assert "s3cret" not in repr(tokens)
