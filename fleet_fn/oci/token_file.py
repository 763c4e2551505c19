"""A registry token in a file, such as the one of the pod's service account."""

import re
from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.oci.docker_config import Credentials

#: Where Kubernetes puts the token of a pod's service account, which it renews; OpenShift puts its services' authority
#: beside it.
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: OpenShift's own registry, which takes tokens of service accounts. No other registry can check one, and its
#: operator could use the token in the cluster.
_OPENSHIFT_REGISTRY: Final = re.compile(
    r"image-registry\.openshift-image-registry\.svc(\.cluster\.local)?(:[0-9]+)?", re.IGNORECASE
)
#: Bound on a token; Kubernetes' have about 1 KiB.
_MAX_TOKEN_BYTES: Final = 64 * 1024


def takes_service_accounts(host: str) -> bool:
    """Return whether a registry is OpenShift's own, by its host."""
    return _OPENSHIFT_REGISTRY.fullmatch(host) is not None


def service_account_token() -> Path | None:
    """Return the file with the token of the pod's service account, if it is mounted."""
    file = SERVICE_ACCOUNT / "token"
    return file if file.exists() else None


def service_authority() -> Path | None:
    """Return the file with the authority of OpenShift's services, if it is mounted."""
    file = SERVICE_ACCOUNT / "service-ca.crt"
    return file if file.exists() else None


def read_token_file(file: str | Path, user: str | None = None) -> Credentials:
    """Return the credentials in a file, as it is now: tokens are renewed.

    Raises:
        PermanentError: the file cannot be read, or no header can carry what it holds.

    """
    name = f"OCI registry credentials: {file}"
    try:
        content = read_small(Path(file), _MAX_TOKEN_BYTES, name)
    except OSError as error:
        raise PermanentError(f"{name}: {error.strerror}") from error
    return Credentials(user, content.decode("utf-8", "replace").strip())
