"""Folders and files that another user owns or may write are detected, and not used."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_fn.firmware.private import (
    UntrustedError,
    UntrustedFileError,
    default_folder,
    open_file,
    open_folder,
    private_folder,
)

ME = os.geteuid()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Make a path another user's. Who is not root becomes another user instead, for whom it is that."""

    def give(path: Path) -> Path:
        if ME == 0:
            os.chown(path, 65534, 65534, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: ME + 1)
        return path

    return give


def folder(path: Path, mode: int = 0o700) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- The folder that is named -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("permissions", [0o700, 0o755, 0o500])
def test_a_folder_that_only_we_can_write_is_used_as_it_is(tmp_path: Path, permissions: int) -> None:
    path = folder(tmp_path / "cache", permissions)
    assert private_folder(path) == path
    assert mode(path) == permissions
    assert not list(path.iterdir())


def test_a_folder_that_is_not_there_is_used_and_not_made(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("permissions", [0o777, 0o1777, 0o2777, 0o2775, 0o770, 0o722])
def test_in_a_volume_that_is_open_to_others_there_is_a_folder_of_our_own(tmp_path: Path, permissions: int) -> None:
    path = folder(tmp_path / "volume", permissions)
    for _ in range(2):
        own = private_folder(path)
        assert own == path / f"fleet-firmware-{ME}"
        assert mode(own) & 0o777 == 0o700
        assert mode(path) == permissions


def test_our_folder_in_a_volume_is_closed_again_after_a_mount_opened_it(tmp_path: Path) -> None:
    own = private_folder(folder(tmp_path / "volume", 0o2777))
    own.chmod(0o2770)
    assert private_folder(tmp_path / "volume") == own
    assert mode(own) == 0o2750


def test_another_users_folder_is_refused(tmp_path: Path, foreign: Callable[[Path], Path]) -> None:
    path = foreign(folder(tmp_path / "cache"))
    with pytest.raises(UntrustedError) as caught:
        private_folder(path)
    assert caught.value.strerror == f"{str(path)!r} belongs to user {path.stat().st_uid}"


def test_another_users_folder_in_the_place_of_ours_is_refused(tmp_path: Path) -> None:
    volume = folder(tmp_path / "volume", 0o777)
    own = private_folder(volume)
    if ME == 0:
        os.chown(own, 65534, 65534)
        with pytest.raises(UntrustedError, match="belongs to user 65534"):
            private_folder(volume)
    own.rmdir()
    own.symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        private_folder(volume)


def test_an_operators_link_is_followed_and_a_strangers_is_not(tmp_path: Path, foreign: Callable[[Path], Path]) -> None:
    path, link = folder(tmp_path / "cache"), tmp_path / "link"
    link.symlink_to(path)
    assert private_folder(link) == path
    foreign(link)
    with pytest.raises(UntrustedError, match="link' belongs to user"):
        private_folder(link)


# --- The default ------------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the default folder is."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"fleet-firmware-{ME}"


def test_the_default_folder_is_made_at_once_for_us_alone(temporary: Path) -> None:
    for _ in range(2):
        assert default_folder() == temporary
        assert mode(temporary) == 0o700


@pytest.mark.parametrize("permissions", [0o770, 0o707, 0o720, 0o702, 0o1777])
def test_a_default_folder_that_others_may_write_is_refused(temporary: Path, permissions: int) -> None:
    folder(temporary, permissions)
    with pytest.raises(UntrustedError) as caught:
        default_folder()
    assert caught.value.strerror == f"{str(temporary)!r} can be written by other users (mode {permissions:04o})"
    assert mode(temporary) == permissions


def test_a_default_folder_that_a_stranger_made_first_is_refused(
    temporary: Path, foreign: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_fn.firmware.private._name", lambda: temporary.name)
    foreign(folder(temporary))
    with pytest.raises(UntrustedError, match="belongs to user"):
        default_folder()


@pytest.mark.parametrize("is_link", [True, False])
def test_a_default_folder_that_is_none_is_refused(temporary: Path, tmp_path: Path, is_link: bool) -> None:
    if is_link:
        temporary.symlink_to(folder(tmp_path / "real"))
    else:
        temporary.touch()
    with pytest.raises(UntrustedError, match=r"is no folder$"):
        default_folder()


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("permissions", "is_ours"), [(0o600, True), (0o644, True), (0o660, False), (0o602, False)])
def test_a_file_that_others_may_write_is_not_opened(tmp_path: Path, permissions: int, is_ours: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(permissions)
    before = len(list(Path("/proc/self/fd").iterdir()))
    if is_ours:
        os.close(open_file(tmp_path, "file", os.O_RDONLY))
    else:
        with pytest.raises(UntrustedFileError):
            open_file(tmp_path, "file", os.O_RDONLY)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_another_users_file_is_not_opened(tmp_path: Path, foreign: Callable[[Path], Path]) -> None:
    (tmp_path / "file").touch()
    foreign(tmp_path / "file")
    with pytest.raises(UntrustedError):
        open_file(tmp_path, "file", os.O_RDONLY)


def test_nothing_is_opened_in_a_folder_of_another_user(tmp_path: Path, foreign: Callable[[Path], Path]) -> None:
    path = folder(tmp_path / "cache")
    (path / "file").touch()
    foreign(path)
    with pytest.raises(UntrustedError) as caught:
        open_file(path, "file", os.O_RDWR | os.O_CREAT)
    assert not isinstance(caught.value, UntrustedFileError)


def test_a_link_is_no_folder(tmp_path: Path) -> None:
    folder(tmp_path / "cache")
    (tmp_path / "link").symlink_to("cache")
    with pytest.raises(OSError, match="Not a directory"):
        open_folder(tmp_path / "link")
