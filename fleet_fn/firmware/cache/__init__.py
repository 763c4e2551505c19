"""Cache of verified bytes on disk: bounded, shared by all processes of the pod.

Bytes are fetched once.
"""

from fleet_fn.firmware.cache.cache import Cache

__all__ = ["Cache"]
