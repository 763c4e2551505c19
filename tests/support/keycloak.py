"""The real Keycloak, which `make peers` fetches, with a realm like Drogue Cloud's."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests

from tests.support.cosign import need_peer

REALM: Final = "drogue"
#: A client as Drogue Cloud's Helm chart makes it, and one with a secret, which form encoding changes.
PUBLIC, CONFIDENTIAL, SECRET = "drogue", "fleet-console", "s3cret & more%+é"
PASSWORD: Final = "pässword"
#: Seconds for which an access token is valid.
LIFETIME: Final = 6
#: Keycloak builds itself at its first start.
_START_SECONDS: Final = 300.0


class Keycloak:
    """A Keycloak that runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.issuer = f"{url}/realms/{REALM}"
        self._session = requests.Session()
        self._session.trust_env = False

    def is_up(self) -> bool:
        try:
            return self._session.get(f"{self.url}/realms/master", timeout=10).status_code == 200
        except requests.ConnectionError:
            return False

    def make_realm(self, *users: str) -> None:
        self._ask("POST", "", json=_realm(users))

    def end_sessions(self, user: str) -> None:
        """Sign a user out everywhere, as an administrator does."""
        (found,) = self._ask("GET", f"/{REALM}/users", params={"username": user, "exact": "true"}).json()
        self._ask("POST", f"/{REALM}/users/{found['id']}/logout", json={})

    def _ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": PASSWORD}
        token = f"{self.url}/realms/master/protocol/openid-connect/token"
        given = self._session.post(token, data=form, timeout=60).json()["access_token"]
        headers = {"Authorization": f"Bearer {given}"}
        answer = self._session.request(
            method, f"{self.url}/admin/realms{path}", headers=headers, timeout=60, **arguments
        )
        assert answer.ok, answer.text
        return answer


@contextmanager
def running_keycloak(folder: Path) -> Iterator[Keycloak]:
    """Run Keycloak, in memory only; `folder` keeps its log."""
    need_peer("kc.sh")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    environment = {"KC_BOOTSTRAP_ADMIN_USERNAME": "admin", "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD}
    command = ["kc.sh", "start-dev", "--db=dev-mem", "--http-host=127.0.0.1", f"--http-port={port}"]
    log = folder / "keycloak.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        keycloak = Keycloak(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + _START_SECONDS
        while not keycloak.is_up():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)  # between two looks; the deadline ends it
        yield keycloak
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the script and its Java
        process.wait(timeout=60)


def _realm(users: tuple[str, ...]) -> dict[str, Any]:
    return {
        "realm": REALM,
        "enabled": True,
        "accessTokenLifespan": LIFETIME,
        # Refresh tokens hold once.
        "revokeRefreshToken": True,
        "refreshTokenMaxReuse": 0,
        "clients": [_client(PUBLIC, None), _client(CONFIDENTIAL, SECRET)],
        "users": [
            {
                "username": user,
                "enabled": True,
                "email": f"{user}@example.com",
                "emailVerified": True,
                "firstName": user,
                "lastName": "Example",
                "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
            }
            for user in users
        ],
    }


def _client(client_id: str, secret: str | None) -> dict[str, Any]:
    """A client whose tokens are for itself, as docs/console.md tells."""
    audience = {"included.client.audience": client_id, "id.token.claim": "false", "access.token.claim": "true"}
    mapper = {"name": "add-audience", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper"}
    return {
        "clientId": client_id,
        "enabled": True,
        "publicClient": secret is None,
        **({"secret": secret} if secret else {}),
        "standardFlowEnabled": True,
        "directAccessGrantsEnabled": False,
        "redirectUris": ["http://127.0.0.1:*"],
        "attributes": {"post.logout.redirect.uris": "+", "pkce.code.challenge.method": "S256"},
        "defaultClientScopes": ["basic", "email", "profile", "roles", "web-origins"],
        "protocolMappers": [{**mapper, "config": audience}],
    }
