"""Tekton Triggers that build a firmware on a push.

A webhook chooses the revision, and nothing else: repository, images and names are those of the template. A CEL filter
lets only commit ids and tags of a few kinds of characters through, because Tekton puts them into the template's JSON as
they are.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from fleet_fn.builds.pipeline_run import Order, make_pipeline_run
from fleet_fn.errors import PermanentError

#: Where the listener's binding finds what the filter let through; see `knative/tekton/triggers`.
_REVISION_KEY: Final = "firmware.revision"
_REVISION: Final = "$(tt.params.revision)"
_BINDING: Final = "firmware-revision"
_COMMIT: Final = "^([0-9a-f]{40}|[0-9a-f]{64})$"
#: What forges say is the commit of a ref that was deleted.
_DELETED: Final = "^0+$"
#: Git tags that can be tags in an OCI registry.
_TAG: Final = "^refs/tags/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
#: A tag by its name, as forges give an annotated one's own id, which is no commit's.
_REVISION_EXPRESSION: Final = 'body.ref.startsWith("refs/tags/") ? body.ref : body.after'
_COMMIT_ID: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: A label of DNS (RFC 1123) that leaves room for more.
_SHORT_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


class Event(StrEnum):
    """What begins a build."""

    BRANCH = "branch"
    TAG = "tag"


@dataclass(frozen=True, slots=True)
class _Forge:
    """How the webhooks of a forge are checked, and where they say what was pushed to."""

    #: Tekton's interceptor, and the events that it lets through.
    interceptor: str
    events: tuple[str, ...]
    #: Path of the repository's name in the body.
    repository: str


#: Gitea and Forgejo sign as GitHub does, too: X-Hub-Signature-256.
_HUB: Final = _Forge("github", ("push",), "body.repository.full_name")
_FORGES: Final = {
    "github": _HUB,
    "gitlab": _Forge("gitlab", ("Push Hook", "Tag Push Hook"), "body.project.path_with_namespace"),
    "gitea": _HUB,
}
FORGES: Final = tuple(_FORGES)


def make_trigger(order: Order, forge: str, secret: str, events: frozenset[Event]) -> list[dict[str, Any]]:
    """Return the TriggerTemplate and the Trigger that build on a push.

    Args:
        order: the build; its revision names the branch.
        forge: one of `FORGES`.
        secret: the Secret whose key `token` is the webhook's secret.
        events: what begins a build.

    Raises:
        PermanentError: a push cannot name the revision, or the repository has no path.

    """
    name = _name(order)
    metadata = {"labels": make_pipeline_run(order)["metadata"]["labels"]}
    template = {
        "apiVersion": "triggers.tekton.dev/v1beta1",
        "kind": "TriggerTemplate",
        "metadata": {"name": name, **metadata},
        "spec": {
            "params": [{"name": "revision", "description": "A commit id, or refs/tags/ and a tag."}],
            "resourcetemplates": [_resource(order)],
        },
    }
    known = _FORGES[forge]
    secret_ref = {"secretName": secret, "secretKey": "token"}
    trigger = {
        "apiVersion": "triggers.tekton.dev/v1beta1",
        "kind": "Trigger",
        "metadata": {"name": f"{name}-{forge}", **metadata},
        "spec": {
            "interceptors": [
                {
                    "ref": {"name": known.interceptor, "kind": "ClusterInterceptor"},
                    "params": [
                        {"name": "secretRef", "value": secret_ref},
                        {"name": "eventTypes", "value": list(known.events)},
                    ],
                },
                {
                    "ref": {"name": "cel", "kind": "ClusterInterceptor"},
                    "params": [
                        {"name": "filter", "value": _filter(order, known, events)},
                        {"name": "overlays", "value": [{"key": _REVISION_KEY, "expression": _REVISION_EXPRESSION}]},
                    ],
                },
            ],
            "bindings": [{"ref": _BINDING, "kind": "TriggerBinding"}],
            "template": {"ref": name},
        },
    }
    return [template, trigger]


def _resource(order: Order) -> dict[str, Any]:
    """Return the run, with the revision left to the webhook."""
    run = make_pipeline_run(order)
    run["metadata"].pop("namespace", None)  # the listener's own
    params = [param for param in run["spec"]["params"] if param["name"] != "GIT_REVISION"]
    run["spec"]["params"] = [*params, {"name": "GIT_REVISION", "value": _REVISION}]
    return run


def _filter(order: Order, forge: _Forge, events: frozenset[Event]) -> str:
    """Return the condition that a body has to meet.

    A body that lacks a key meets none.
    """
    branch = _literal(f"refs/heads/{_branch(order)}")
    conditions = {
        Event.BRANCH: f"body.ref == {branch} && body.after.matches({_literal(_COMMIT)})",
        Event.TAG: f"body.ref.matches({_literal(_TAG)})",
    }
    chosen = " || ".join(f"({conditions[event]})" for event in Event if event in events)
    repository = f"{forge.repository}.lowerAscii() == {_literal(_repository(order.build.repository).lower())}"
    return f"{repository} && !body.after.matches({_literal(_DELETED)}) && ({chosen})"


def _literal(text: str) -> str:
    """Return a text as a string of CEL, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _branch(order: Order) -> str:
    revision = order.build.revision or "main"
    if _COMMIT_ID.fullmatch(revision) or (revision.startswith("refs/") and not revision.startswith("refs/heads/")):
        raise PermanentError(f"source.git.rev is {revision}, which no push moves; a trigger needs a branch")
    return revision.removeprefix("refs/heads/")


def _repository(address: str) -> str:
    """Return a repository's name at its forge, such as acme/sensor."""
    path = urlsplit(address).path if "://" in address else address.partition(":")[2]
    name = path.strip("/").removesuffix(".git")
    if not name:
        raise PermanentError(f"source.git.uri is {address}, which names no repository of a forge")
    return name


def _name(order: Order) -> str:
    """Return the name of the objects: the application's if it can be one, else a hash."""
    if order.device is None and _SHORT_NAME.fullmatch(order.application):
        return f"firmware-{order.application}"
    whole = json.dumps([order.application, order.device])
    return f"firmware-{hashlib.sha256(whole.encode()).hexdigest()[:24]}"
