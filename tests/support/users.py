"""Other users of the machine, who can be played in full only by root."""

import os
import stat
from pathlib import Path
from typing import Final

#: Users and a group that own nothing here.
STRANGER: Final = 65534
POD: Final = 65532
OTHER_POD: Final = 65531
VOLUME_GROUP: Final = 65530


def is_root() -> bool:
    return os.geteuid() == 0


def open_to_others(path: Path) -> None:
    """Let the file's group write to it, as Kubernetes does for `fsGroup`."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o060)


def give_away(path: Path) -> None:
    """Have another user own it; where only root can do that, have others write to it."""
    if is_root():
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    else:
        path.chmod(0o606)


def become(user: int, *groups: int) -> None:
    """Go on as another user, if this process may; as itself if not."""
    if is_root():
        os.setgroups(groups)
        os.setgid(user)
        os.setuid(user)


def make_volume(path: Path) -> Path:
    """Make a folder as Kubernetes mounts an emptyDir with `fsGroup`: root's, open to all, its group passed on."""
    path.mkdir()
    if is_root():
        os.chown(path, 0, VOLUME_GROUP)
    path.chmod(0o2777)
    return path
