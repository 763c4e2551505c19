"""Cures of upstreams' failures, for people at a command line.

A reason states facts: devices' reports and logs have it, too. A cure names a command's options and its environment.
"""

import re
from typing import Final

from fleet_fn.drogue.refusals import NO_CREDENTIALS, TOKEN_ENDPOINT
from fleet_fn.fleet.cures import Means, cure_of_registry
from fleet_fn.oci.access import Access, credential_helper
from fleet_fn.oci.publication import WANTS_CREDENTIALS
from fleet_fn.oci.token_realm import NONE_CONFIGURED, REFUSED
from fleet_fn.settings import Settings

#: What a command line can set about an OCI registry.
_OPTIONS: Final = Means(
    "--ca-file or FIRMWARE_REGISTRY_CA_FILE",
    "--insecure (FIRMWARE_REGISTRY_INSECURE=true)",
    "--insecure (FIRMWARE_REGISTRY_INSECURE)",
    "log in as docker does",
)


def cure_of_drogue(reason: str, settings: Settings) -> str:
    """Return what follows a reason of Drogue Cloud.

    It is the variable of the URL in question, its value, and a cure, if there is a likely one.
    """
    if reason.startswith(TOKEN_ENDPOINT):
        variable, url = "DROGUE_OIDC_TOKEN_URL", settings.drogue_oidc_token_url or ""
        if REFUSED in reason:
            return f"; {variable} is {url}: check DROGUE_OIDC_CLIENT_ID and DROGUE_OIDC_CLIENT_SECRET"
    else:
        variable, url = "DROGUE_API_URL", settings.drogue_api_url
    if settings.is_anonymous and re.search(r": 40[134] for ", reason):
        return f"{NO_CREDENTIALS}: set it and DROGUE_USER, or an OpenID client; {variable} is {url}"
    return f"; {variable} is {url}{_cure_of_url(reason, url, settings)}"


def _cure_of_url(reason: str, url: str, settings: Settings) -> str:
    if "certificate not trusted" in reason:
        if settings.drogue_ca_file:
            return f": the trust anchors in DROGUE_CA_FILE ({settings.drogue_ca_file}) are not those of its certificate"
        return ": name its trust anchors with DROGUE_CA_FILE"
    if "does not speak TLS" in reason:
        return ": for plain HTTP it begins with http://"
    if reason.endswith("answered 400 for the devices") and url.startswith("http:"):  # the registry says nothing
        return ": if it speaks TLS, it begins with https://"
    if re.search(r"not JSON|no JSON|is no list", reason):
        return ": is that the right URL?"
    return ""


def cure_of_access(reason: str, host: str, access: Access) -> str:
    """Return the cure that follows a reason of the OCI registry at `host`, or ""."""
    cure = cure_of_registry(reason, host, _OPTIONS, is_insecure=access.insecure)
    return f"{cure}{_note_on_helper()}" if NONE_CONFIGURED in reason else cure


def cure_of_publishing(reason: str) -> str:
    """Return the cure that follows a reason of `publish`, or "".

    Many of its reasons have theirs already.
    """
    if WANTS_CREDENTIALS in reason:
        return _note_on_helper()
    if "answered 405 to a P" in reason:
        return "; the registry is read-only, or a mirror: publish to another"
    return ""


def _note_on_helper() -> str:
    """Return the name of a helper that is not run, to follow a reason; or ""."""
    helper = credential_helper()
    return f"; {helper} names a credential helper, which is not run" if helper else ""
