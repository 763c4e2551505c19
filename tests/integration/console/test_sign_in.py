"""Sign-in to the console at a real OpenID provider, and what attackers may try."""

import base64
import hmac
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
import trustme
from joserfc.jwk import RSAKey

from tests.support.http import Request, Response
from tests.support.openid import CLIENT, OpenIdProvider
from tests.support.served_console import Browser, Console, signing_in


@pytest.fixture(scope="module")
def running(shared_provider: OpenIdProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A console, whose users Drogue Cloud knows by the provider's tokens."""
    with signing_in(shared_provider, tmp_path_factory.mktemp("console")) as running:
        yield running


@pytest.fixture
def browser(running: Console, provider: OpenIdProvider) -> Browser:
    assert provider
    return Browser(running)


@pytest.fixture(autouse=True)
def _no_secret_is_told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the console's log has no code, token or secret."""
    yield
    if "running" in request.fixturenames:
        provider: OpenIdProvider = request.getfixturevalue("shared_provider")
        log: str = request.getfixturevalue("running").output
        assert not [secret for secret in provider.secrets if secret in log]
        assert "Traceback" not in log, log


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between two looks; the deadline ends it


# --- The way in -------------------------------------------------------------------------------------------------------


def test_a_user_signs_in_and_sees_what_they_asked_for(browser: Browser, running: Console) -> None:
    page = browser.sign_in("owner", "/applications/example?sort=name")
    assert (page.status_code, page.url) == (200, f"{running.url}/applications/example?sort=name")
    assert "owner" in page.text
    assert browser.get("/").status_code == 200


def test_drogue_cloud_decides_what_each_user_sees(running: Console, provider: OpenIdProvider) -> None:
    assert provider
    for name, status in (("reader", 200), ("stranger", 404), ("not even a member", 404)):
        assert Browser(running).sign_in(name, "/applications/example").status_code == status


def test_the_provider_is_asked_with_pkce_state_and_nonce(browser: Browser, running: Console) -> None:
    asked = browser.begin()
    assert asked["response_type"] == "code"
    assert asked["client_id"] == CLIENT
    assert asked["redirect_uri"] == f"{running.url}/sign-in/callback"
    assert asked["scope"] == "openid profile email"
    assert asked["code_challenge_method"] == "S256"
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", asked["code_challenge"])
    again = browser.begin()
    for secret in ("state", "nonce", "code_challenge"):
        assert asked[secret] != again[secret]
        assert len(asked[secret]) >= 22


def test_several_tabs_can_sign_in_at_the_same_time(browser: Browser, running: Console) -> None:
    first = browser.authorize("owner", "/applications/example?sort=name")
    second = browser.authorize("owner", "/applications/example?page=2")
    assert browser.session.get(first, timeout=30).url == f"{running.url}/applications/example?sort=name"
    assert browser.session.get(second, timeout=30).url == f"{running.url}/"  # signed in already


def test_many_begun_sign_ins_fit_into_a_cookie(browser: Browser) -> None:
    for number in range(12):
        browser.begin(quote(f"/applications/example/device?name={number}{'x' * 500}"))
    assert browser.sign_in("owner").status_code == 200
    for cookie in browser.session.cookies:
        assert len(cookie.value or "") < 3900


def test_without_a_session_a_fragment_is_401_and_a_page_leads_to_the_provider(browser: Browser) -> None:
    assert browser.get("/applications/example", fragment=True).status_code == 401
    page = browser.get("/applications/example?q=a%20b", follow=False)
    assert (page.status_code, page.headers["Location"]) == (
        303,
        "/sign-in?next=%2Fapplications%2Fexample%3Fq%3Da%2520b",
    )
    assert browser.get("/sign-out", follow=False).status_code == 405


def test_a_name_is_told_as_the_provider_has_it_but_never_as_markup(browser: Browser) -> None:
    page = browser.sign_in('<script>alert("x")</script>')
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(" in page.text


# --- Attacks ----------------------------------------------------------------------------------------------------------


def test_an_answer_without_this_browsers_state_is_refused(running: Console, browser: Browser) -> None:
    attacker = Browser(running)
    stolen = attacker.authorize("attacker")
    for url in (stolen, re.sub("state=[^&]+", "state=", stolen), re.sub("&state=[^&]+", "", stolen)):
        answer = browser.session.get(url, timeout=30)
        assert (answer.status_code, "did not begin in this browser" in answer.text) == (400, True)
    assert browser.get("/", follow=False).status_code == 303


def test_a_code_of_another_browser_is_refused(running: Console, browser: Browser) -> None:
    stolen = parse_qs(urlsplit(Browser(running).authorize("owner")).query)["code"][0]
    state = browser.begin()["state"]
    answer = browser.get(f"/sign-in/callback?code={stolen}&state={state}")
    assert (answer.status_code, "does not hold any more" in answer.text) == (502, True)
    assert stolen not in answer.text
    again = browser.get(f"/sign-in/callback?code={stolen}&state={state}")
    assert (again.status_code, "did not begin in this browser" in again.text) == (400, True)


def test_an_answer_counts_once(browser: Browser, provider: OpenIdProvider) -> None:
    back = browser.authorize("owner")
    cookies = browser.session.cookies.copy()
    assert browser.session.get(back, timeout=30).status_code == 200
    browser.session.cookies = cookies  # as a thief of the cookie would have it
    assert browser.session.get(back, timeout=30).status_code == 502
    assert len([each for each in provider.asked("/token") if b"authorization_code" in each.body]) >= 2


def test_the_provider_itself_refuses_a_client_without_pkce(browser: Browser, provider: OpenIdProvider) -> None:
    there = browser.get("/sign-in", follow=False).headers["Location"]
    bare = re.sub("&code_challenge(_method)?=[^&]+", "", there)
    answer = requests.get(bare, allow_redirects=False, timeout=30)
    assert "error=invalid_request" in answer.headers["Location"]
    location = browser.authorize("owner")
    code = parse_qs(urlsplit(location).query)["code"][0]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": provider.client.redirect_uris[0]}
    credentials = (quote(CLIENT), quote(provider.client.secret or ""))
    for verifier in ({}, {"code_verifier": "x" * 43}):
        url = f"{provider.issuer}/protocol/openid-connect/token"
        answer = requests.post(url, data={**form, **verifier}, auth=credentials, timeout=30)
        assert (answer.status_code, answer.json()["error"]) in ((400, "invalid_request"), (400, "invalid_grant"))


def forged(**claims: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {**given, **claims}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (forged(nonce="another"), "claim nonce"),
        (lambda given: {name: value for name, value in given.items() if name != "nonce"}, "claim nonce"),
        (forged(iss="https://sso.example.com/realms/drogue"), "claim iss"),
        (forged(aud="another-client"), "claim aud"),
        (forged(aud=[CLIENT, "another"], azp="another"), "claim azp"),
        (forged(exp=int(time.time()) - 120), "expired"),
        (forged(iat=int(time.time()) + 600), "claim iat"),
        (forged(at_hash="AAAAAAAAAAAAAAAAAAAAAA"), "claim at_hash"),
        (lambda given: {name: value for name, value in given.items() if name != "sub"}, "claim sub"),
        (forged(sub=7), "claim sub"),
    ],
)
def test_an_id_token_with_a_wrong_claim_is_refused(
    browser: Browser, provider: OpenIdProvider, change: Callable[[Any], Any], reason: str
) -> None:
    provider.knobs.id_token = change
    answer = browser.sign_in("owner")
    assert (answer.status_code, reason in answer.text) == (502, True), answer.text
    assert browser.get("/", follow=False).status_code == 303


def test_an_id_token_signed_by_another_is_refused(browser: Browser, provider: OpenIdProvider) -> None:
    other = RSAKey.generate_key(2048)
    same_id = RSAKey.import_key({**other.as_dict(private=True), "kid": provider.key.kid or ""})
    for key in (other, same_id):
        provider.knobs.forger = key, "RS256"
        answer = browser.sign_in("owner")
        assert (answer.status_code, "ID token is not acceptable" in answer.text) == (502, True)
        browser.session.cookies.clear()
    provider.knobs.forger = None
    assert browser.sign_in("owner").status_code == 200


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def test_an_id_token_that_proves_nothing_is_refused(browser: Browser, provider: OpenIdProvider) -> None:
    def header(algorithm: str) -> str:
        return encode(json.dumps({"alg": algorithm, "kid": provider.key.kid}).encode())

    def unsign(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "id_token": f"{header('none')}.{answer['id_token'].split('.')[1]}."}

    def sign_with_what_is_public(answer: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(provider.key, RSAKey)
        text = f"{header('HS256')}.{answer['id_token'].split('.')[1]}"
        signature = hmac.digest(provider.key.as_pem(private=False), text.encode(), "sha256")
        return {**answer, "id_token": f"{text}.{encode(signature)}"}

    changes = (unsign, sign_with_what_is_public, *(forged(id_token=value) for value in ("a.b.c", "", None, 7)))
    for change in changes:
        provider.knobs.token_answer = change
        answer = browser.sign_in("owner")
        assert (answer.status_code, "ID token" in answer.text) == (502, True), answer.text
        browser.session.cookies.clear()


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example/",
        r"/\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "evil.example",
        "",
        "/sign-in?next=//evil.example",
        "/sign-out",
    ],
)
def test_sign_in_leads_nowhere_else(browser: Browser, running: Console, path: str) -> None:
    back = browser.authorize("owner", quote(path))
    after = browser.session.get(back, allow_redirects=False, timeout=30)
    assert (after.status_code, after.headers["Location"]) == (303, "/")
    signed_in = browser.get(f"/sign-in?next={quote(path)}", follow=False)
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/")
    assert running


def test_a_session_that_was_there_before_is_not_the_one_after(browser: Browser, running: Console) -> None:
    browser.begin()
    before = browser.session.cookies["fleet"]
    browser.sign_in("owner")
    after = browser.session.cookies["fleet"]
    planted = Browser(running)
    planted.session.cookies.set("fleet", before)
    assert planted.get("/", follow=False).status_code == 303
    browser.session.cookies.clear()
    browser.session.cookies.set("fleet", after)
    assert browser.get("/", follow=False).status_code == 200


def test_a_cookie_that_is_not_ours_is_worth_nothing(browser: Browser, running: Console) -> None:
    browser.sign_in("owner")
    value = browser.session.cookies["fleet"]
    stranger = Browser(running)
    for forged_cookie in (value[:-2] + ("AA" if value[-2:] != "AA" else "BB"), value.split(".")[0], "x", ""):
        stranger.session.cookies.set("fleet", forged_cookie)
        assert stranger.get("/", follow=False).status_code == 303


def test_the_cookie_is_for_this_site_only_and_holds_no_token(browser: Browser, provider: OpenIdProvider) -> None:
    back = browser.authorize("owner")
    cookie = browser.session.get(back, allow_redirects=False, timeout=30).headers["Set-Cookie"]
    assert "; HttpOnly" in cookie
    assert "; SameSite=Lax" in cookie
    assert "; Path=/" in cookie
    assert "Domain" not in cookie
    assert not [secret for secret in provider.secrets if secret in cookie]


def test_an_error_of_the_provider_is_a_page_with_a_way_on(browser: Browser, provider: OpenIdProvider) -> None:
    provider.knobs.refuses_with = "access_denied"
    page = browser.get("/applications/example")
    assert (page.status_code, "did not let you in (access_denied)" in page.text) == (403, True)
    assert '/sign-in?next=%2Fapplications%2Fexample"' in page.text
    assert "<b>no" not in page.text
    provider.knobs.refuses_with = "<script>x"
    page = browser.get("/")
    assert (page.status_code, "script>x" in page.text) == (403, False)


def test_another_providers_answer_is_refused(browser: Browser, provider: OpenIdProvider) -> None:
    back = browser.authorize("owner")
    answer = browser.session.get(f"{back}&iss=https%3A%2F%2Fevil.example", timeout=30)
    assert answer.status_code == 400
    good = browser.authorize("owner")
    assert browser.session.get(f"{good}&iss={quote(provider.issuer, safe='')}", timeout=30).status_code == 200


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_an_expired_token_is_renewed(browser: Browser, provider: OpenIdProvider) -> None:
    provider.knobs.lifetime = 1
    browser.sign_in("owner")
    before = provider.refreshes
    for _ in range(3):
        asked = provider.refreshes
        wait_for(lambda asked=asked: browser.get("/", follow=False).status_code == 200 and provider.refreshes > asked)  # type: ignore[misc]
    assert provider.refreshes >= before + 3
    assert provider.memory.reuses == 0


def test_threads_do_not_use_a_refresh_token_twice(browser: Browser, provider: OpenIdProvider) -> None:
    provider.knobs.lifetime = 3  # seconds; a token that is shown must not expire on its way
    browser.sign_in("owner")
    reuses = provider.memory.reuses
    cookies = browser.session.cookies
    statuses: list[int] = []

    def look() -> None:
        for _ in range(8):
            answer = requests.get(f"{browser.console.url}/", cookies=cookies, allow_redirects=False, timeout=30)
            statuses.append(answer.status_code)

    until = provider.refreshes + 2
    while provider.refreshes < until:
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert provider.memory.reuses == reuses


def test_a_user_whose_session_ended_at_the_provider_signs_in_again(
    browser: Browser, provider: OpenIdProvider, running: Console
) -> None:
    provider.knobs.lifetime = 1
    browser.sign_in("owner")
    provider.memory.end_sessions()
    wait_for(lambda: browser.get("/applications/example", fragment=True).status_code == 401)
    page = browser.get("/applications/example", follow=False)
    assert page.headers["Location"] == "/sign-in?next=%2Fapplications%2Fexample"
    assert browser.sign_in("owner", "/applications/example").url == f"{running.url}/applications/example"


def test_without_refresh_tokens_the_provider_lets_the_user_in_again(
    browser: Browser, provider: OpenIdProvider, running: Console
) -> None:
    provider.knobs.lifetime = 1
    provider.client.grants = ("authorization_code",)
    browser.sign_in("owner")
    wait_for(lambda: browser.get("/", fragment=True).status_code == 401)
    assert browser.get("/").url == f"{running.url}/"  # without a form: the provider knows the browser


def test_a_user_without_rights_does_not_have_tokens_renewed_again_and_again(
    browser: Browser, provider: OpenIdProvider
) -> None:
    browser.sign_in("stranger")
    before = provider.refreshes
    for _ in range(5):
        assert browser.get("/applications/example").status_code == 404
    assert provider.refreshes == before
    assert browser.get("/").status_code == 200


# --- The way out ------------------------------------------------------------------------------------------------------


def test_a_user_signs_out_here_and_at_the_provider(
    browser: Browser, provider: OpenIdProvider, running: Console
) -> None:
    browser.sign_in("owner")
    cookies = browser.session.cookies.copy()
    page = browser.sign_out()
    assert (page.status_code, page.url, "You are signed out" in page.text) == (200, f"{running.url}/signed-out", True)
    assert provider.memory.given[-1].is_revoked()
    assert "name=username" in browser.get("/").text  # the provider does not know the browser any more
    thief = Browser(running)
    thief.session.cookies = cookies
    assert thief.get("/", follow=False).status_code == 303


def test_sign_out_needs_the_pages_own_token(browser: Browser, running: Console) -> None:
    browser.sign_in("owner")
    assert browser.sign_out(token="").status_code == 400
    other = Browser(running)
    other.sign_in("reader")
    assert browser.sign_out(token=other.csrf_token()).status_code == 400
    assert browser.get("/", follow=False).status_code == 200


def test_forms_of_an_earlier_session_are_worth_nothing(browser: Browser) -> None:
    browser.sign_in("owner")
    earlier = browser.csrf_token()
    browser.sign_out()
    browser.sign_in("reader")
    assert browser.sign_out(token=earlier).status_code == 400
    assert browser.get("/", follow=False).status_code == 200


def test_forms_may_lead_to_the_provider_only(browser: Browser, provider: OpenIdProvider) -> None:
    policy = browser.sign_in("owner").headers["Content-Security-Policy"]
    assert policy.endswith(f"form-action 'self' {provider.server.url}")


def test_users_have_sessions_of_their_own(running: Console, browser: Browser) -> None:
    other = Browser(running)
    assert "reader" in other.sign_in("reader").text
    assert "manager" in browser.sign_in("manager").text
    other.sign_out()
    assert "manager" in browser.get("/").text


# --- A provider that fails --------------------------------------------------------------------------------------------


def test_a_console_starts_without_its_provider_and_asks_it_again(tmp_path: Path) -> None:
    with OpenIdProvider() as provider:
        provider.server.stop_listening()
        with signing_in(provider, tmp_path) as running:
            browser = Browser(running)
            page = browser.get("/")
            assert (page.status_code, "OpenID provider: connection refused" in page.text) == (503, True)
            assert "Sign in</a>" in page.text
            provider.server.listen_again()
            wait_for(lambda: "name=username" in browser.get("/").text)
            assert browser.sign_in("owner").status_code == 200


def test_a_slow_provider_keeps_no_page_waiting(browser: Browser, provider: OpenIdProvider) -> None:
    back = browser.authorize("owner")
    released = threading.Event()

    def stall(asked: Request) -> Response | None:
        if asked.path.endswith("/token"):
            released.wait(30)
        return None

    provider.knobs.answer_instead = stall
    began = time.monotonic()
    page = browser.session.get(back, timeout=30)
    seconds = time.monotonic() - began
    released.set()
    assert (page.status_code, "OpenID provider: no answer in time" in page.text) == (503, True)
    assert 4 < seconds < 10


@pytest.mark.parametrize(
    ("end", "response", "status", "reason"),
    [
        ("/token", Response(500, b"oops"), 503, "answered 500"),
        ("/token", Response(429, b""), 503, "answered 429"),
        ("/token", Response(400, b'{"error": "invalid_scope"}'), 502, "400 to a request for tokens (invalid_scope)"),
        ("/token", Response(401, b'{"error": "invalid_client"}'), 502, "CONSOLE_OIDC_CLIENT_SECRET"),
        ("/token", Response(200, b"<html>"), 502, "no JSON object"),
        ("/token", Response(200, b"[]"), 502, "no JSON object"),
        ("/token", Response(200, b'{"access_token": "a", "token_type": "mac"}'), 502, "not of type Bearer"),
        ("/token", Response(302, b"", {"Location": "http://127.0.0.1:1/"}), 502, "answered 302"),
    ],
)
def test_a_provider_that_fails_is_told_in_words(
    browser: Browser, provider: OpenIdProvider, end: str, response: Response, status: int, reason: str
) -> None:
    back = browser.authorize("owner", "/applications/example")
    provider.knobs.answer_instead = lambda asked: response if asked.path.endswith(end) else None
    page = browser.session.get(back, timeout=30)
    assert (page.status_code, reason in page.text) == (status, True), page.text
    assert '/sign-in?next=%2Fapplications%2Fexample"' in page.text
    assert not [secret for secret in provider.secrets if secret in page.text]


def test_while_the_provider_is_down_users_stay_signed_in(browser: Browser, provider: OpenIdProvider) -> None:
    provider.knobs.lifetime = 1
    browser.sign_in("owner")
    provider.knobs.answer_instead = lambda _: Response(503)
    before = provider.refreshes
    statuses: list[int] = []

    def asks_for_a_token() -> bool:
        statuses.append(browser.get("/", follow=False).status_code)
        return provider.refreshes > before

    wait_for(asks_for_a_token)
    statuses.append(browser.get("/", follow=False).status_code)
    assert set(statuses) <= {200, 503}
    provider.knobs.answer_instead = None
    wait_for(lambda: browser.get("/", follow=False).status_code == 200)


def test_sign_out_works_while_the_provider_is_down(browser: Browser, provider: OpenIdProvider) -> None:
    browser.sign_in("owner")
    token = browser.csrf_token()
    provider.knobs.answer_instead = lambda _: Response(503)
    answer = browser.sign_out(follow=False, token=token)
    assert answer.status_code == 303
    assert browser.get("/", follow=False).status_code == 303


# --- Other settings ---------------------------------------------------------------------------------------------------


def test_a_public_client_proves_itself_by_pkce_alone(tmp_path: Path) -> None:
    with OpenIdProvider() as provider:
        provider.client.secret = None
        provider.knobs.lifetime = 1
        with signing_in(provider, tmp_path) as running:
            browser = Browser(running)
            assert browser.sign_in("owner").url == f"{running.url}/"
            wait_for(lambda: browser.get("/", follow=False).status_code == 200 and bool(provider.refreshes))
            assert browser.sign_out().url == f"{running.url}/signed-out"
    assert all("Authorization" not in asked.headers for asked in provider.asked("/token"))


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_provider_by_https_is_trusted_by_drogue_clouds_authorities(tmp_path: Path, is_trusted: bool) -> None:
    authority, another = trustme.CA(), trustme.CA()
    certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(certified)
    trusted, own = str(tmp_path / "trusted.pem"), str(tmp_path / "own.pem")
    (authority if is_trusted else another).cert_pem.write_to_path(trusted)
    authority.cert_pem.write_to_path(own)
    with OpenIdProvider(tls=certified) as provider, signing_in(provider, tmp_path, DROGUE_CA_FILE=trusted) as running:
        browser = Browser(running)
        browser.session.verify = own
        if is_trusted:
            assert browser.sign_in("owner").url == f"{running.url}/"
        else:
            page = browser.get("/")
            assert (page.status_code, "OpenID provider: certificate not trusted" in page.text) == (502, True)


def test_by_https_the_cookie_is_for_https_and_this_host_only(tmp_path: Path) -> None:
    with OpenIdProvider() as provider, signing_in(provider, tmp_path, CONSOLE_URL="https://fleet.example") as running:
        url = f"{running.url}/sign-in"
        answer = requests.get(url, headers={"Host": "fleet.example"}, allow_redirects=False, timeout=30)
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-fleet=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
        assert "redirect_uri=https%3A%2F%2Ffleet.example%2Fsign-in%2Fcallback" in answer.headers["Location"]
        assert answer.headers["Strict-Transport-Security"]
        assert requests.get(url, allow_redirects=False, timeout=30).status_code == 421
