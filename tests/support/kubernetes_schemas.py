"""Kubernetes' own schemas, as PyPI has them: what an API server checks of an object."""

from collections.abc import Mapping
from typing import Any

import kubernetes_validate

#: Groups of Kubernetes itself; others are of custom resources.
_GROUPS = ("", "apps", "autoscaling", "batch", "networking.k8s.io", "policy", "rbac.authorization.k8s.io")


def is_built_in(given: Mapping[str, Any]) -> bool:
    """Whether an object is of a kind that each cluster knows."""
    group, slash, _ = given["apiVersion"].partition("/")
    return (group if slash else "") in _GROUPS


def check(given: Mapping[str, Any]) -> None:
    """Check an object strictly: no key may be unknown."""
    kubernetes_validate.validate(dict(given), kubernetes_validate.latest_version(), strict=True)
