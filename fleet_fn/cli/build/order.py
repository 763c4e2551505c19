"""From an application in the device registry to the order of its build."""

from contextlib import closing
from typing import Final

from fleet_fn.builds.firmware import Buildable, find_build
from fleet_fn.builds.pipeline_run import Order
from fleet_fn.cli.build.options import Options
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.oci.reference import Reference, image_reference
from fleet_fn.settings import Settings, SettingsError
from fleet_fn.upstreams import make_drogue

#: Time for the device registry, all in all.
_SECONDS: Final = 30.0


def make_order(settings: Settings, options: Options) -> tuple[Order, Reference]:
    """Return the order of a build, and the firmware that devices are to run now.

    Raises:
        SettingsError: FIRMWARE_REGISTRY is not that of an OCI registry.
        PermanentError: the firmware describes no build, or the device registry refuses.
        TransientError: the device registry is unavailable.

    """
    application = options.application or ""
    if settings.has_layouts or not settings.has_images:
        problem = "is a folder" if settings.has_layouts else "is not set"
        raise SettingsError(
            f"FIRMWARE_REGISTRY {problem}. Set it to the OCI registry that the function reads, e.g. ghcr.io/acme/"
        )
    found = _find(settings, application, options.device)
    current = image_reference(found.image.reference, settings.firmware_prefix, application)
    registry, _, image = f"{current.prefix}{current.name}".rpartition("/")
    order = Order(
        application=application,
        device=options.device,
        build=found.build,
        registry=registry,
        image=image,
        version=options.version,
        insecure=settings.firmware_registry_insecure,
        namespace=options.namespace,
        service_account=options.service_account,
        secrets=options.secrets,
        storage=options.storage,
        params=dict(options.params),
    )
    return order, current


def _find(settings: Settings, application: str, device: str | None) -> Buildable:
    deadline = Deadline(_SECONDS)
    with closing(make_drogue(settings)) as upstream:
        api = DeviceRegistryAPI(upstream, anonymous=settings.is_anonymous)
        of_application, _ = api.fetch((application,), deadline)
        of_device = None if device is None else api.fetch((application, device), deadline)[0]
    return find_build(of_application, of_device)
