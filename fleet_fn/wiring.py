"""Which parts make up the function, as the settings say."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from fleet_fn.background import Background
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.oidc import ClientCredentials
from fleet_fn.drogue.registry import Registry
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.catalogue import Catalogue
from fleet_fn.firmware.credentials import Credentials, from_docker_config
from fleet_fn.firmware.distribution import Distribution
from fleet_fn.firmware.file import FileStore
from fleet_fn.firmware.layout import LayoutStore
from fleet_fn.firmware.oci import RegistryStore
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Store
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.settings import Settings
from fleet_fn.update import Updater
from fleet_fn.upstream import Authorization, Fixed, Upstream, basic


@dataclass(frozen=True, slots=True)
class _Parts:
    """What events and previews share."""

    background: Background
    drogue: Upstream
    images: Store
    files: Store | None


def make_updaters(settings: Settings) -> tuple[Updater, Updater]:
    """The updater that answers events, and another for previews, which remembers no spec, manifest or event."""
    background = Background()
    files = VerifiedFiles(background)
    parts = _Parts(
        background,
        make_drogue(settings, background),
        make_image_store(settings, files, background),
        FileStore(settings.firmware_dir, files) if settings.firmware_dir else None,
    )
    # An event's age does not matter to a preview.
    return _updater(settings, parts, remember=True), _updater(replace(settings, event_max_age=0), parts, remember=False)


def make_drogue(settings: Settings, background: Background) -> Upstream:
    """Drogue Cloud's APIs, with the credentials that the settings have for them."""
    return Upstream(
        "Drogue Cloud",
        settings.drogue_api_url,
        authorization=_authorization(settings, background),
        ca_file=settings.drogue_ca_file,
        background=background,
    )


def make_image_store(settings: Settings, files: VerifiedFiles, background: Background) -> Store:
    """The store of what `FIRMWARE_REGISTRY` names: image layouts, or a registry."""
    cache = Cache(settings.firmware_cache_dir, settings.firmware_cache_bytes, files, background)
    shapes = Shapes(cache, background)
    if settings.has_layouts:
        return LayoutStore(files, shapes)
    host = settings.firmware_prefix.partition("/")[0]
    registry = Distribution(
        host,
        credentials=_registry_credentials(settings, host),
        plain_http=settings.firmware_registry_insecure,
        ca_file=settings.firmware_registry_ca_file,
        background=background,
    )
    return RegistryStore(registry, shapes, cache)


def _updater(settings: Settings, parts: _Parts, *, remember: bool) -> Updater:
    return Updater(
        settings,
        Registry(parts.drogue, remember=remember),
        Catalogue(parts.images, parts.background, remember=remember),
        Catalogue(parts.files, parts.background, remember=remember) if parts.files else None,
        Commands(parts.drogue),
    )


def _authorization(settings: Settings, background: Background) -> Authorization:
    if settings.drogue_oidc_token_url:
        url = urlsplit(settings.drogue_oidc_token_url)
        provider = Upstream(
            "token endpoint", f"{url.scheme}://{url.netloc}", ca_file=settings.drogue_ca_file, background=background
        )
        client = (settings.drogue_oidc_client_id or "", settings.drogue_oidc_client_secret or "")
        return ClientCredentials(provider, url.path or "/", *client)
    if settings.drogue_token is None:
        return Fixed()
    if settings.drogue_user is None:
        return Fixed(f"Bearer {settings.drogue_token}")
    return Fixed(basic(settings.drogue_user, settings.drogue_token))


def _registry_credentials(settings: Settings, host: str) -> Callable[[str], Credentials | None]:
    """The credentials for a repository of the registry at `host`."""
    if settings.firmware_registry_token is not None:
        configured = Credentials(settings.firmware_registry_user, settings.firmware_registry_token)
        return lambda _: configured
    if settings.docker_config is not None:
        folder = settings.docker_config
        return lambda repository: from_docker_config(folder, host, repository)
    return lambda _: None
