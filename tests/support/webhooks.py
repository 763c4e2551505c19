"""Webhooks of GitHub, GitLab and Gitea as they arrive: what a push says, and how it is signed."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

COMMIT: Final = "6f1f8f2c7b3c4c0a9d0e5f3b1a2c4d5e6f708192"
DELETED: Final = "0" * 40
SECRET: Final = "s3cret-of-the-webhook"


@dataclass(frozen=True)
class Webhook:
    """A request of a forge."""

    body: str
    headers: Mapping[str, str]

    def request(self, token: str) -> str:
        """The line that the peer takes; the Secret `firmware-webhook` has the token."""
        held = {"firmware-webhook": {"token": token}}
        return json.dumps({"body": self.body, "headers": dict(self.headers), "secrets": held})


def github(ref: Any = "refs/heads/main", after: Any = COMMIT, secret: str = SECRET, **changes: Any) -> Webhook:
    body = {
        "ref": ref,
        "before": "1" * 40,
        "after": after,
        "repository": {
            "id": 186853002,
            "name": "sensor",
            "full_name": "acme/sensor",
            "private": False,
            "owner": {"name": "acme", "login": "acme"},
            "html_url": "https://github.com/acme/sensor",
            "clone_url": "https://github.com/acme/sensor.git",
            "ssh_url": "git@github.com:acme/sensor.git",
            "default_branch": "main",
        },
        "pusher": {"name": "octocat", "email": "octocat@example.com"},
        "sender": {"login": "octocat", "id": 583231},
        "created": False,
        "deleted": after == DELETED,
        "forced": False,
        "base_ref": None,
        "compare": "https://github.com/acme/sensor/compare/1111...6f1f",
        "commits": [{"id": after, "message": 'Blink $(id) `id` "; }', "modified": ["src/main.rs"]}],
        "head_commit": None if after == DELETED else {"id": after, "message": "Blink"},
    }
    text = json.dumps(body | changes)
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "X-Hub-Signature": "sha1=" + hmac.new(secret.encode(), text.encode(), hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": f"sha256={signature}",
    }
    return Webhook(text, headers)


def gitea(ref: Any = "refs/heads/main", after: Any = COMMIT, secret: str = SECRET, **changes: Any) -> Webhook:
    body = {
        "ref": ref,
        "before": "1" * 40,
        "after": after,
        "compare_url": "https://git.example.com/acme/sensor/compare/1111...6f1f",
        "commits": [{"id": after, "message": "Blink", "added": [], "removed": [], "modified": ["src/main.rs"]}],
        "total_commits": 1,
        "head_commit": {"id": after, "message": "Blink"},
        "repository": {
            "id": 140,
            "owner": {"id": 1, "login": "acme", "username": "acme"},
            "name": "sensor",
            "full_name": "acme/sensor",
            "html_url": "https://git.example.com/acme/sensor",
            "ssh_url": "ssh://git@git.example.com:2222/acme/sensor.git",
            "clone_url": "https://git.example.com/acme/sensor.git",
            "default_branch": "main",
        },
        "pusher": {"id": 1, "login": "gitea", "username": "gitea"},
        "sender": {"id": 1, "login": "gitea", "username": "gitea"},
    }
    text = json.dumps(body | changes)
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-Gitea-Event": "push",
        "X-Gitea-Event-Type": "push",
        "X-Gitea-Delivery": "f6266f16-1bf3-46a5-9ea4-602e06ead473",
        "X-Gitea-Signature": signature,
        "X-Gogs-Event": "push",
        "X-Gogs-Signature": signature,
        "X-GitHub-Event": "push",
        "X-GitHub-Event-Type": "push",
        "X-Hub-Signature": "sha1=" + hmac.new(secret.encode(), text.encode(), hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": f"sha256={signature}",
    }
    return Webhook(text, headers)


def gitlab(ref: Any = "refs/heads/main", after: Any = COMMIT, secret: str = SECRET, **changes: Any) -> Webhook:
    is_tag = isinstance(ref, str) and ref.startswith("refs/tags/")
    body = {
        "object_kind": "tag_push" if is_tag else "push",
        "event_name": "tag_push" if is_tag else "push",
        "before": "1" * 40,
        "after": after,
        "ref": ref,
        "ref_protected": True,
        "checkout_sha": None if after == DELETED else after,
        "user_id": 4,
        "user_name": "John Smith",
        "project_id": 15,
        "project": {
            "id": 15,
            "name": "Sensor",
            "web_url": "https://gitlab.example.com/acme/sensor",
            "git_ssh_url": "git@gitlab.example.com:acme/sensor.git",
            "git_http_url": "https://gitlab.example.com/acme/sensor.git",
            "namespace": "Acme",
            "path_with_namespace": "acme/sensor",
            "default_branch": "main",
        },
        "commits": [{"id": after, "message": "Blink", "modified": ["src/main.rs"]}],
        "total_commits_count": 1,
    }
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitLab/17.5.0",
        "X-Gitlab-Event": "Tag Push Hook" if is_tag else "Push Hook",
        "X-Gitlab-Event-UUID": "13792a34-cac6-4fda-95a8-c58e00a3954e",
        "X-Gitlab-Token": secret,
    }
    return Webhook(json.dumps(body | changes), headers)


FORGES: Final = {"github": github, "gitlab": gitlab, "gitea": gitea}
