"""Cures of an OCI registry's failures, for people.

A reason states facts: devices' reports and logs have it, too. A cure names what its reader can set.
"""

import re
from typing import Final, NamedTuple

from fleet_fn.oci.token_realm import NONE_CONFIGURED, REFUSED


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
