"""Which parts make up the function, as the settings say."""

from fleet_fn.background import Background
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.registry import Registry
from fleet_fn.firmware.catalogue import Catalogue
from fleet_fn.firmware.layout import LayoutStore
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.log import logger
from fleet_fn.settings import LAYOUT_SCHEME, Settings
from fleet_fn.update import Updater
from fleet_fn.upstream import Upstream, basic


def make_updaters(settings: Settings) -> tuple[Updater, Updater]:
    """The updater that answers events, and another for previews, which remembers no spec, manifest or event."""
    if settings.drogue_oidc_token_url:
        logger.warning("DROGUE_OIDC_… have no effect yet: requests to Drogue Cloud go out without credentials")
    background = Background()
    authorization = _authorization(settings)
    drogue = Upstream(
        "Drogue Cloud",
        settings.drogue_api_url,
        authorization=lambda: authorization,
        ca_file=settings.drogue_ca_file,
        background=background,
    )
    files = VerifiedFiles(background)
    return _updater(settings, drogue, files, remember=True), _updater(settings, drogue, files, remember=False)


def _updater(settings: Settings, drogue: Upstream, files: VerifiedFiles, *, remember: bool) -> Updater:
    catalogue = None
    if settings.firmware_registry.startswith(LAYOUT_SCHEME):
        folder = settings.firmware_registry.removeprefix(LAYOUT_SCHEME)
        catalogue = Catalogue(LayoutStore(files), folder, remember=remember)
    return Updater(settings, Registry(drogue, remember=remember), catalogue, Commands(drogue))


def _authorization(settings: Settings) -> str | None:
    if settings.drogue_token is None:
        return None
    if settings.drogue_user is None:
        return f"Bearer {settings.drogue_token}"
    return basic(settings.drogue_user, settings.drogue_token)
