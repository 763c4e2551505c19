"""Clients of Drogue Cloud and of the sink, made from the settings.

Commands import these without the function's other `parts`, which take as long to import as all else that they need.
"""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fleet_fn.drogue.oidc import ClientCredentials
from fleet_fn.drogue.refusals import DEVICE_REGISTRY, TOKEN_ENDPOINT
from fleet_fn.http.authorization import Authorization, Fixed, basic
from fleet_fn.http.client import HttpClient
from fleet_fn.observability import metrics
from fleet_fn.settings import Settings

if TYPE_CHECKING:
    from fleet_fn.sink.client import Sink


def make_drogue(settings: Settings) -> HttpClient:
    """Return a client of Drogue Cloud's APIs, named after the device registry."""
    return HttpClient(
        DEVICE_REGISTRY,
        settings.drogue_api_url,
        authorization=make_authorization(settings),
        ca_file=settings.drogue_ca_file,
    )


def make_sink(settings: Settings) -> "Sink | None":
    """Return the sink that K_SINK names; without it, None and no loaded module."""
    if settings.sink_url is None:
        return None
    from fleet_fn.sink.client import SINK, Sink

    url = urlsplit(settings.sink_url)
    upstream = HttpClient(SINK, f"{url.scheme}://{url.netloc}").with_count("sink", metrics.exchanges("sink"))
    return Sink(upstream, url.path or "/", settings.sink_overrides or {})


def make_authorization(settings: Settings) -> Authorization:
    """Return the credentials for Drogue Cloud."""
    if settings.drogue_oidc_token_url:
        url = urlsplit(settings.drogue_oidc_token_url)
        provider = HttpClient(TOKEN_ENDPOINT, f"{url.scheme}://{url.netloc}", ca_file=settings.drogue_ca_file)
        client = (settings.drogue_oidc_client_id or "", settings.drogue_oidc_client_secret or "")
        return ClientCredentials(provider, url.path or "/", *client)
    if settings.drogue_token is None:
        return Fixed()
    if settings.drogue_user is None:
        return Fixed(f"Bearer {settings.drogue_token}")
    return Fixed(basic(settings.drogue_user, settings.drogue_token))
