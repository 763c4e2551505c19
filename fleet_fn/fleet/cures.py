"""Cures of upstreams' failures, for people.

A reason states facts: devices' reports and logs have it, too. A cure names what its reader can set.
"""

import re
from typing import Final, NamedTuple

from fleet_fn.drogue.refusals import DEVICE_REGISTRY, NO_CREDENTIALS, TOKEN_ENDPOINT
from fleet_fn.oci.token_realm import NONE_CONFIGURED, REFUSED
from fleet_fn.settings import Settings


class Means(NamedTuple):
    """What a reader can set, in words that complete a cure."""

    #: Names trust anchors.
    ca_file: str = "FIRMWARE_REGISTRY_CA_FILE"
    #: Turns TLS off, and names the same option.
    insecure: str = "FIRMWARE_REGISTRY_INSECURE=true"
    insecure_option: str = "FIRMWARE_REGISTRY_INSECURE"
    #: Gives credentials without the two variables.
    log_in: str = "name the folder of a docker config.json in DOCKER_CONFIG"


#: The variables of a function, or of a console.
VARIABLES: Final = Means()


def cure_of_registry(reason: str, host: str, means: Means = VARIABLES, *, is_insecure: bool) -> str:
    """Return the cure that follows a reason of the OCI registry at `host`, or "".

    Args:
        reason: the reason.
        host: of the registry, for people.
        means: what the reader can set.
        is_insecure: TLS is turned off.

    """
    if "certificate not trusted" in reason:
        return f"; name the trust anchors with {means.ca_file}"
    if "does not speak TLS" in reason:
        return f"; {means.insecure} is for plain HTTP"
    if "answered 400" in reason and is_insecure:
        return f"; if it speaks TLS, leave out {means.insecure_option}"
    if NONE_CONFIGURED in reason:
        return f"; set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or {means.log_in}"
    if REFUSED in reason:
        return f"; check FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or {means.log_in} again"
    if re.match(r"manifest(:| is not)", reason):
        return f"; is {host} an OCI registry? It answered with something else"
    return ""


def cure_of_drogue(reason: str, settings: Settings) -> str:
    """Return what follows a reason of Drogue Cloud; "" for one of another upstream.

    It is the variable of the URL in question, its value, and a cure, if there is a likely one.
    """
    if not reason.startswith((DEVICE_REGISTRY, TOKEN_ENDPOINT)):
        return ""
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
    if REFUSED in reason and " for a write" not in reason:
        names = "DROGUE_USER and DROGUE_TOKEN" if settings.drogue_token else "the OpenID client's rights"
        return f": check it, and {names}"
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
