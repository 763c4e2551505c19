"""Authorization: recipients of credentials, lifetimes of tokens, and threads that share one token."""

import base64
import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError
from fleet_fn.http.authorization import basic
from fleet_fn.http.messages import Answer
from fleet_fn.oci.authentication import Authorization
from fleet_fn.oci.challenges import parse_challenges
from fleet_fn.oci.docker_config import Credentials
from tests.support.timing import SignalingDeadline
from tests.support.token_realm import FakeRealm, answered

ADA = Credentials("ada", "pass")
TOKEN_ONLY = Credentials(None, "s3cret")
BEARER = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:acme/pump:pull"'
BASIC = 'Basic realm="registry"'

NAME = "OCI registry registry.example"
REFUSED = f"{NAME}: our credentials were refused"
NONE_CONFIGURED = f"{NAME}: access denied: no credentials are configured"


@dataclass
class Configured:
    """Credentials that can be changed, and whether anybody needed them."""

    credentials: Credentials | None = None
    read: list[str] = field(default_factory=list)

    def __call__(self, repository: str) -> Credentials | None:
        self.read.append(repository)
        return self.credentials


def authorization(realm: FakeRealm, credentials: Credentials | Configured | None = None) -> Authorization:
    configured = credentials if isinstance(credentials, Configured) else Configured(credentials)
    return Authorization("registry.example", configured, realm, realm.clock)


def answer_challenge(
    authorization: Authorization, *challenges: str, refused: str | None = None, repository: str = "acme/pump"
) -> str:
    return authorization.answer_challenge(repository, refused, challenges or [BEARER], Deadline(5))


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(PermanentError) as caught:
        call()
    return caught.value.reason


# --- Who is shown what ------------------------------------------------------------------------------------------------


def test_no_credentials_are_read_or_sent_before_a_challenge() -> None:
    configured = Configured(ADA)
    assert authorization(FakeRealm(), configured).header("acme/pump") is None
    assert not configured.read


@pytest.mark.parametrize("credentials", [None, ADA])
def test_a_token_is_fetched_with_what_is_configured_and_used_from_then_on(credentials: Credentials | None) -> None:
    realm, configured = FakeRealm(), Configured(credentials)
    ours = authorization(realm, configured)
    assert answer_challenge(ours) == "Bearer token1"
    assert realm.was_shown == (basic("ada", "pass") if credentials else None)
    assert configured.read == ["acme/pump"]
    assert ours.header("acme/pump") == "Bearer token1"
    assert len(realm.asked) == 1


def test_a_token_serves_one_repository() -> None:
    realm = FakeRealm()
    ours = authorization(realm)
    answer_challenge(ours, repository="acme/pump")
    assert ours.header("acme/valve") is None
    assert answer_challenge(ours, repository="acme/valve") == "Bearer token2"
    assert ours.header("acme/pump") == "Bearer token1"


def test_basic_credentials_are_shown_to_a_registry_that_asks_and_then_for_all_its_repositories() -> None:
    configured = Configured(ADA)
    ours = authorization(FakeRealm(), configured)
    assert answer_challenge(ours, BASIC) == basic("ada", "pass")
    assert ours.header("acme/pump") == ours.header("acme/valve") == basic("ada", "pass")
    configured.credentials = Credentials("ada", "new")
    assert ours.header("acme/pump") == basic("ada", "new")
    configured.credentials = None
    assert ours.header("acme/pump") is None


def test_a_configured_token_is_shown_to_a_registry_that_asks_for_one_and_never_to_a_realm() -> None:
    realm = FakeRealm()
    ours = authorization(realm, TOKEN_ONLY)
    for challenge in (BEARER, "Bearer"):
        assert answer_challenge(ours, challenge) == "Bearer s3cret"
    assert ours.header("acme/valve") == "Bearer s3cret"
    assert not realm.asked


def test_registry_that_changes_its_scheme_gets_the_new_one() -> None:
    ours = authorization(FakeRealm(), ADA)
    shown = answer_challenge(ours, BASIC)
    assert answer_challenge(ours, BEARER, refused=shown) == "Bearer token1"
    assert ours.header("acme/valve") is None
    ours = authorization(FakeRealm(), configured := Configured(TOKEN_ONLY))
    answer_challenge(ours, BEARER)
    configured.credentials = ADA
    assert ours.header("acme/pump") is None  # Basic was never asked for


@pytest.mark.parametrize(
    "challenges", [[BASIC, BEARER], [f"{BASIC}, {BEARER}"], [BEARER, BASIC], ["Bearer", BASIC, BEARER]]
)
@pytest.mark.parametrize(("credentials", "shown"), [(ADA, "Bearer token1"), (TOKEN_ONLY, "Bearer s3cret")])
def test_a_token_is_preferred_to_basic(challenges: list[str], credentials: Credentials, shown: str) -> None:
    assert answer_challenge(authorization(FakeRealm(), credentials), *challenges) == shown


def test_where_nothing_says_where_to_get_a_token_basic_will_do() -> None:
    assert answer_challenge(authorization(FakeRealm(), ADA), 'Bearer service="x"', BASIC) == basic("ada", "pass")


@pytest.mark.parametrize(
    ("challenges", "credentials", "told"),
    [
        ([BASIC], None, NONE_CONFIGURED),
        (
            [BASIC],
            TOKEN_ONLY,
            f"{NAME}: asks for a user name and a password, but only a token is configured",
        ),
        ([], ADA, f"{NAME}: answered 401 without asking for Basic or Bearer credentials"),
        (["@@@"], ADA, f"{NAME}: answered 401 without asking for Basic or Bearer credentials"),
        (
            ["Negotiate, Digest qop=x"],
            ADA,
            f"{NAME}: asks for digest or negotiate, but only Basic and Bearer credentials are supported",
        ),
        (
            ["s3cret"],
            ADA,
            f"{NAME}: asks for another scheme, but only Basic and Bearer credentials are supported",
        ),
        (
            ["NTLM, s3cret x=y"],
            ADA,
            f"{NAME}: asks for ntlm or another scheme, but only Basic and Bearer credentials are supported",
        ),
        (
            ["x" * 65536],
            ADA,
            f"{NAME}: asks for another scheme, but only Basic and Bearer credentials are supported",
        ),
        (["Bearer"], ADA, f"{NAME}: asks for a token, but does not say where to get one"),
        (
            ['Bearer realm=""'],
            None,
            f"{NAME}: asks for a token, but does not say where to get one",
        ),
    ],
)
def test_unanswerable_challenge_fails(challenges: list[str], credentials: Credentials | None, told: str) -> None:
    ours = authorization(FakeRealm(), credentials)
    assert reason(lambda: ours.answer_challenge("acme/pump", None, challenges, Deadline(5))) == told


def test_credentials_that_cannot_be_read_are_a_failure() -> None:
    broken = True

    def credentials(_: str) -> Credentials:
        if broken:
            raise PermanentError("OCI registry credentials: DOCKER_CONFIG: no")
        return ADA

    ours = Authorization("registry.example", credentials, FakeRealm())
    for challenge in (BASIC, BEARER):
        with pytest.raises(PermanentError, match="DOCKER_CONFIG: no"):
            answer_challenge(ours, challenge)
    broken = False
    answer_challenge(ours, BASIC)
    broken = True
    with pytest.raises(PermanentError, match="DOCKER_CONFIG: no"):
        ours.header("acme/pump")


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_refused_anonymous_token_says_that_credentials_were_not_sent() -> None:
    ours = authorization(FakeRealm(), ADA)
    shown = answer_challenge(ours, 'Bearer realm="http://auth.example/token"')
    where = "http://auth.example, which is neither https nor the registry's own host"
    assert ours.refusal("acme/pump", shown).reason == f"{NAME}: access denied: our credentials were not sent to {where}"


@pytest.mark.parametrize("answer", [answered(403), answered(404), answered(body=b"{}"), answered(body=b"[]")])
def test_failed_fetch_leaves_no_token(answer: Answer) -> None:
    realm = FakeRealm(answer=lambda: answer)
    ours = authorization(realm)
    for attempt in (1, 2):
        assert reason(lambda: answer_challenge(ours)).startswith(f"{NAME}: ")
        assert ours.header("acme/pump") is None
        assert len(realm.asked) == attempt


def test_transient_errors_are_passed_on_and_not_remembered() -> None:
    def is_down() -> Answer:
        raise RateLimitedError(f"{NAME}: answered 429", 7)

    realm = FakeRealm(answer=is_down)
    ours = authorization(realm)
    with pytest.raises(RateLimitedError) as caught:
        answer_challenge(ours)
    assert caught.value.retry_after == 7
    realm.answer = None
    assert answer_challenge(ours) == "Bearer token2"


# --- How long a token serves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({}, 50),
        ({"expires_in": None}, 50),
        ({"expires_in": 300}, 290),
        ({"expires_in": 300, "issued_at": "2009-11-10T23:00:00Z"}, 290),
        ({"expires_in": 41}, 31),
        # Realms should not, and do: then most of what there is.
        ({"expires_in": 20}, 15),
        ({"expires_in": 1}, 0.75),
        # What says nothing is as if nothing were said.
        ({"expires_in": 0}, 50),
        ({"expires_in": -1}, 50),
        ({"expires_in": "300"}, 50),
        ({"expires_in": 300.5}, 50),
        ({"expires_in": True}, 50),
        ({"expires_in": 10**400}, 86390),
    ],
)
def test_a_token_serves_until_a_little_before_it_expires(more: Mapping[str, object], seconds: float) -> None:
    realm = FakeRealm(takes=0.5, more=more)
    ours = authorization(realm)
    asked = realm.clock.now
    shown = answer_challenge(ours)
    realm.clock.now = asked + seconds - 0.01
    assert ours.header("acme/pump") == shown
    realm.clock.now = asked + seconds
    assert ours.header("acme/pump") is None
    assert answer_challenge(ours) == "Bearer token2"


def test_a_token_that_is_refused_before_its_time_is_renewed_once() -> None:
    realm = FakeRealm(more={"expires_in": 300})
    ours = authorization(realm)
    shown = answer_challenge(ours)
    realm.clock.now += 5
    assert answer_challenge(ours, refused=shown) == "Bearer token2"
    # Whoever comes late with the old one gets the new one.
    assert answer_challenge(ours, refused=shown) == answer_challenge(ours, refused=None) == "Bearer token2"
    assert len(realm.asked) == 2


@pytest.mark.parametrize(("credentials", "told"), [(ADA, REFUSED), (None, NONE_CONFIGURED)])
def test_a_token_that_is_refused_has_a_reason_by_what_it_was_fetched_with(
    credentials: Credentials | None, told: str
) -> None:
    ours = authorization(FakeRealm(more={"expires_in": 300}), credentials)
    shown = answer_challenge(ours)
    assert ours.refusal("acme/pump", shown).reason == told
    assert answer_challenge(ours, refused=shown) == "Bearer token2", "however young it was: it may have been revoked"


@pytest.mark.parametrize(("credentials", "challenge"), [(ADA, BASIC), (TOKEN_ONLY, BEARER)])
def test_configured_credentials_that_were_refused_are_shown_again_only_when_they_change(
    credentials: Credentials, challenge: str
) -> None:
    configured = Configured(credentials)
    ours = authorization(FakeRealm(), configured)
    shown = answer_challenge(ours, challenge)
    assert reason(lambda: answer_challenge(ours, challenge, refused=shown)) == REFUSED
    assert ours.refusal("acme/pump", shown).reason == REFUSED
    configured.credentials = Credentials(credentials.user, "rotated")
    assert answer_challenge(ours, challenge, refused=shown) != shown


def test_a_refusal_without_a_question_says_so() -> None:
    told = f"{NAME}: access denied, and no credentials were asked for"
    assert authorization(FakeRealm(), ADA).refusal("acme/pump", None).reason == told


def test_tokens_of_1024_repositories_are_remembered_and_the_oldest_is_forgotten() -> None:
    ours = authorization(FakeRealm())
    for number in range(1025):
        answer_challenge(ours, repository=f"pump{number}")
    assert ours.header("pump0") is None
    assert ours.header("pump1") == "Bearer token2"
    assert ours.header("pump1024") == "Bearer token1025"


# --- Several at once --------------------------------------------------------------------------------------------------


class Held:
    """A realm that holds its first answer back."""

    def __init__(self, *answers: Answer | TransientError) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, url: str, _: Mapping[str, str], __: Deadline) -> Answer:
        self.asked.append(url)
        number = len(self.asked)
        if number == 1:
            self.reached.set()
            assert self.opened.wait(30)
        answer = self.answers[number - 1] if self.answers else answered(body=b'{"token": "token%d"}' % number)
        if isinstance(answer, TransientError):
            raise answer
        return answer


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def outcomes(realm: Held, threads: ThreadPoolExecutor) -> list[str]:
    """What eight get that ask at once, the one who asks first before the others."""
    ours, waiting = Authorization("registry.example", Configured(), realm), threading.Semaphore(0)

    def ask(deadline: Deadline) -> str:
        try:
            return ours.answer_challenge("acme/pump", None, [BEARER], deadline)
        except (PermanentError, TransientError) as error:
            return error.reason

    first = threads.submit(ask, Deadline(30))
    assert realm.reached.wait(30)
    others = [threads.submit(ask, SignalingDeadline(30, waiting)) for _ in range(7)]
    for _ in others:
        assert waiting.acquire(timeout=30)
    realm.opened.set()
    return [result.result() for result in [first, *others]]


def test_those_who_need_a_token_at_once_share_it(threads: ThreadPoolExecutor) -> None:
    realm = Held()
    assert outcomes(realm, threads) == ["Bearer token1"] * 8
    assert len(realm.asked) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answered(403), NONE_CONFIGURED),
        (RateLimitedError(f"{NAME}: answered 429"), f"{NAME}: answered 429"),
    ],
)
def test_those_who_wait_for_a_token_share_its_failure(
    threads: ThreadPoolExecutor, answer: Answer | TransientError, told: str
) -> None:
    realm = Held(answer)
    assert outcomes(realm, threads) == [told] * 8
    assert len(realm.asked) == 1


def test_one_who_had_no_more_time_does_not_spoil_it_for_the_others(threads: ThreadPoolExecutor) -> None:
    realm = Held(TransientError(f"{NAME}: no answer in time"), answered(body=b'{"token": "t"}'))
    assert outcomes(realm, threads) == [f"{NAME}: no answer in time"] + ["Bearer t"] * 7
    assert len(realm.asked) == 2


def test_those_who_were_refused_at_once_share_the_renewed_token(threads: ThreadPoolExecutor) -> None:
    realm = FakeRealm(more={"expires_in": 300})
    ours = authorization(realm)
    shown = answer_challenge(ours)
    realm.clock.now += 60
    together = threading.Barrier(8)

    def ask() -> str:
        together.wait(30)
        return answer_challenge(ours, refused=shown)

    assert {result.result() for result in [threads.submit(ask) for _ in range(8)]} == {"Bearer token2"}
    assert len(realm.asked) == 2


def test_repositories_do_not_wait_for_each_other_nor_a_first_try_for_anything(threads: ThreadPoolExecutor) -> None:
    realm = Held()
    ours = Authorization("registry.example", Configured(), realm)
    slowly = threads.submit(answer_challenge, ours, repository="one")
    assert realm.reached.wait(30)
    assert answer_challenge(ours, repository="other") == "Bearer token2"
    assert ours.header("one") is None
    assert ours.header("other") == "Bearer token2"
    realm.opened.set()
    assert slowly.result() == "Bearer token1"


def test_who_waits_for_the_token_of_another_waits_until_the_own_deadline(threads: ThreadPoolExecutor) -> None:
    realm = Held()
    ours = Authorization("registry.example", Configured(), realm)
    slowly = threads.submit(answer_challenge, ours)
    assert realm.reached.wait(30)
    deadline = Deadline(0.1)
    with pytest.raises(
        TransientError, match=r"^OCI registry registry\.example: an earlier request for a token has not ended$"
    ):
        ours.answer_challenge("acme/pump", None, [BEARER], deadline)
    assert deadline.elapsed < 2
    realm.opened.set()
    assert slowly.result() == "Bearer token1"


# --- Secrets ----------------------------------------------------------------------------------------------------------

SECRET = "S3cr3t"
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=8).map(lambda text: SECRET + text)
hidden = st.sampled_from(
    [b"%s", b"\xff%s", b'"%s', b'["%s"]', b'{"token": "%s"}', b'{"token": "%s\\n"}', b'{"token": "%s", "token": ""}',
     b'{"token": ["%s"]}', b'{"access_token": "%s", "token": "\\ud800"}', b'{"%s": 1e999}', b'{"token": "%s'],
)  # fmt: skip


def everything_told(thing: object) -> str:
    """Its texts, and those of what it comes from, shown in a traceback or not."""
    if not isinstance(thing, BaseException):
        return f"{thing!s} {thing!r}"
    sources = [source for source in (thing.__cause__, thing.__context__) if source]
    return " ".join([str(thing), repr(thing), *traceback.format_exception(thing), *map(everything_told, sources)])


@given(
    user=st.none() | st.just("ada"),
    secret=secrets,
    realm=st.sampled_from(["https://auth.example", "http://auth.example", "http://registry.example", "ftp://x", "x"]),
    path=st.sampled_from(["?key=", "/", "/#", "/\\\\", "/ ", "", ":", "@"]),
    schemes=st.lists(st.sampled_from(["Bearer", "Basic", "Digest"]), max_size=3),
    status=st.sampled_from([200, 200, 302, 400, 401, 403, 404]),
    body=hidden,
)
@example("ada", SECRET, "https://auth.example", "?key=", ["Bearer"], 200, b'{"token": "%s"}')
@example("ada", SECRET, "https://auth.example", "?key=", ["Bearer"], 200, b'\xff{"token": "%s"}')
@example(None, SECRET, "https://auth.example", "?key=", ["Bearer"], 200, b"")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_error_quotes_a_secret(
    caplog: pytest.LogCaptureFixture,
    user: str | None,
    secret: str,
    realm: str,
    path: str,
    schemes: list[str],
    status: int,
    body: bytes,
) -> None:
    caplog.set_level(logging.DEBUG)
    ours = authorization(
        FakeRealm(answer=lambda: answered(status, body.replace(b"%s", secret.encode()))), Credentials(user, secret)
    )
    quoted = re.sub(r'(["\\])', r"\\\1", secret)
    challenges = [f'{scheme} realm="{realm}{path}{quoted}",service="{SECRET}"' for scheme in schemes]
    told: list[object] = [*parse_challenges(challenges), Credentials(user, secret)]
    refused = None
    try:
        for _ in range(3):  # what is shown is refused
            refused = ours.answer_challenge("acme/pump", refused, challenges, Deadline(5))
            told += [ours, *vars(ours)["_tokens"].values(), ours.refusal("acme/pump", refused)]
    except PermanentError as error:
        assert error.reason.startswith(f"{NAME}: ")
        told.append(error)
    told += caplog.records
    for form in (SECRET, base64.b64encode(SECRET.encode())[:7].decode(), basic("ada", SECRET)[6:16]):
        assert form not in " ".join(map(everything_told, told))
