"""Cache of verified bytes on disk: fetched once, shared by all processes of the pod, bounded."""

from fleet_fn.firmware.cache.cache import Cache

__all__ = ["Cache"]
