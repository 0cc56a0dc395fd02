"""Where a server keeps the certificate that it has made for itself."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gnar_lib.errors import ConfigError
from gnar_lib.transport.identity import FILE_NAME, Identity, load, load_or_make
from gnar_lib.transport.x509 import fingerprint_of
from tests.helpers.certificates import openssl

NOBODY = 12345  # a user that no machine has


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Return what is logged."""
    monkeypatch.setattr(logging.getLogger("gnar"), "handlers", [caplog.handler])
    return caplog


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file for OpenSSL be one on disk, as on systems other than Linux."""
    monkeypatch.delattr(os, "memfd_create")


def refused(folder: Path) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(ConfigError) as caught:
        load_or_make(str(folder))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("state-dir: ")
    return text


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- kept --------------------------------------------------------------------------------------------------


def test_certificate_is_kept_for_the_next_process_and_for_this_user_alone(folder: Path) -> None:
    made = load_or_make(str(folder / "a" / "b"))
    path = folder / "a" / "b" / FILE_NAME
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    assert os.listdir(path.parent) == [FILE_NAME]
    assert path.read_bytes() == made.pem
    again = load_or_make(str(path.parent))
    assert again.fingerprint == made.fingerprint == fingerprint_of(made.pem)
    assert len(made.fingerprint) == 64
    kept = load(str(path.parent))
    assert kept is not None
    assert kept.fingerprint == made.fingerprint
    assert repr(made) == f"<Identity {made.fingerprint}>"


def test_nothing_is_made_by_looking(folder: Path) -> None:
    assert load(str(folder)) is None
    assert not folder.exists()


def test_fingerprint_is_the_one_of_openssl(folder: Path) -> None:
    made = load_or_make(str(folder))
    said = openssl("x509", "-in", folder / FILE_NAME, "-noout", "-fingerprint", "-sha256")
    assert said.strip().partition("=")[2].replace(":", "").lower() == made.fingerprint


def test_certificate_of_somebody_else_is_used_as_well(folder: Path, tmp_path: Path) -> None:
    made = load_or_make(str(tmp_path / "other"))
    folder.mkdir(0o700)
    shutil.copy(tmp_path / "other" / FILE_NAME, folder / FILE_NAME)
    assert load_or_make(str(folder)).fingerprint == made.fingerprint


@pytest.mark.parametrize("memory", [True, False])
def test_without_a_folder_each_process_has_its_own_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, *, memory: bool
) -> None:
    if not memory:
        request.getfixturevalue("without_memory")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    one, other = load_or_make(""), load_or_make("")
    assert one.fingerprint != other.fingerprint
    one.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert os.listdir(tmp_path) == []
    assert (os.listdir("/proc/self/fd") if sys.platform == "linux" else []) == before


@pytest.mark.usefixtures("without_memory")
def test_file_for_openssl_is_for_this_user_alone_and_goes_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, *_args: Any, **_options: Any) -> None:
            seen.append(mode_of(Path(certfile)))
            error = ssl.SSLError(1, "no")
            error.reason = "NO"
            raise error

    seen: list[int] = []
    made = load_or_make("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConfigError, match="does not take the certificate that gnar makes: no; "):
        made.load_into(Context(ssl.PROTOCOL_TLS_SERVER))
    assert seen == [0o600]
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("without_memory")
def test_system_without_a_folder_for_temporary_files_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^\S+none\S+: No such file or directory; TLS .* set TMPDIR$"):
        load_or_make("")


# ---- what cannot be used -----------------------------------------------------------------------------------


def damages() -> dict[str, bytes]:
    """Return contents of files that are no certificate with its key."""
    with tempfile.TemporaryDirectory() as name:
        one, other, locked = Path(name, "one"), Path(name, "other"), Path(name, "locked")
        one.write_bytes(load_or_make("").pem)
        other.write_bytes(load_or_make("").pem)
        openssl("pkey", "-in", one, "-out", locked, "-aes256", "-passout", "pass:x")
        pem = one.read_bytes()
        place = pem.index(b"-----BEGIN CERTIFICATE")
        return {
            "empty": b"",
            "zeros": bytes(len(pem)),
            "cut": pem[:-100],
            "key alone": pem[:place],
            "certificate alone": pem[place:],
            "other key": other.read_bytes()[:place] + pem[place:],
            "locked": locked.read_bytes() + pem[place:],
            "changed": pem.replace(b"CERTIFICATE-----\nMII", b"CERTIFICATE-----\nMIJ"),
            "of another length": pem.replace(b"CERTIFICATE-----\n", b"CERTIFICATE-----\nA"),
        }


def test_damaged_file_is_refused_in_one_line_and_stays(folder: Path) -> None:
    folder.mkdir(0o700)
    path = folder / FILE_NAME
    for name, data in damages().items():
        path.write_bytes(data)
        path.chmod(0o600)
        assert refused(folder).startswith(f"state-dir: {path}: damaged: "), name
        if name == "other key":
            assert "damaged: the key does not fit the certificate; put" in refused(folder)
        assert refused(folder).endswith("put the file back from a backup, or delete it for a new certificate")
        assert path.read_bytes() == data
        assert os.listdir(folder) == [FILE_NAME]


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_refused(folder: Path, kind: str) -> None:
    load_or_make(str(folder))
    path = folder / FILE_NAME
    path.rename(folder / "real")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("real")
    else:
        os.mkfifo(path)
    assert refused(folder) == f"state-dir: {path}: not a regular file"


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_another_user_owns_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    load_or_make(str(folder))
    real, mine = os.geteuid(), [os.geteuid()] if what == "file" else []
    monkeypatch.setattr(os, "geteuid", lambda: mine.pop() if mine else real + 1)
    assert refused(folder).endswith(f"another user owns the {what}; chown gives it to the user who runs gnar")


def test_folder_in_which_others_can_put_files_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)
    assert "others can write to the folder; chmod go-w" in refused(folder)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("is_file", [True, False])
def test_who_looks_is_told_of_a_folder_that_would_be_refused(folder: Path, *, is_file: bool) -> None:
    if is_file:
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        load(str(folder))
    assert str(caught.value) == refused(folder)


def test_key_that_others_could_read_is_told_of_and_closed(
    folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    made = load_or_make(str(folder))
    (folder / FILE_NAME).chmod(0o644)
    assert load_or_make(str(folder)).fingerprint == made.fingerprint
    assert mode_of(folder / FILE_NAME) == 0o600
    (line,) = lines.messages
    assert line == f"{folder / FILE_NAME}: other users could read the key (mode 644), and no longer can"


@pytest.mark.parametrize("name", ["file/x", "x" * 300, "a\0b", "loop/x"])
def test_folder_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / name)


@pytest.fixture
def of_a_user() -> Iterator[Path]:
    """Be a user whom modes of files hold back, which root is not; return a folder of that user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "state")
        folder.mkdir(0o700)
        is_root = os.geteuid() == 0
        if is_root:
            Path(name).chmod(0o755)
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            folder.chmod(0o700)
            if is_root:
                os.seteuid(0)


def test_folder_that_takes_no_file_is_told_of_unless_the_file_is_there(of_a_user: Path) -> None:
    of_a_user.chmod(0o500)
    expected = f"state-dir: {of_a_user}: Permission denied; the server's certificate is kept there"
    assert refused(of_a_user).startswith(expected)
    of_a_user.chmod(0o700)
    made = load_or_make(str(of_a_user))
    of_a_user.chmod(0o500)
    assert load_or_make(str(of_a_user)).fingerprint == made.fingerprint


def test_file_that_this_user_may_not_read_is_told_of_and_stays(of_a_user: Path) -> None:
    pem = load_or_make(str(of_a_user)).pem
    (of_a_user / FILE_NAME).chmod(0)
    expected = (
        f"state-dir: {of_a_user / FILE_NAME}: Permission denied; the server's certificate is kept there"
    )
    assert refused(of_a_user).startswith(expected)
    (of_a_user / FILE_NAME).chmod(0o600)
    assert (of_a_user / FILE_NAME).read_bytes() == pem


# ---- at the same time --------------------------------------------------------------------------------------


def test_process_that_comes_second_uses_what_the_first_has_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Identity] = []
    link = os.link

    def link_late(*args: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        first.append(load_or_make(str(folder)))
        link(*args)

    monkeypatch.setattr(os, "link", link_late)
    second = load_or_make(str(folder))
    assert second.fingerprint == first[0].fingerprint
    assert os.listdir(folder) == [FILE_NAME]


def test_processes_that_start_at_once_end_with_one_certificate(folder: Path) -> None:
    program = (
        "import sys; from gnar_lib.transport.identity import load_or_make; print(flush=True);"
        f"sys.stdin.readline(); print(load_or_make({str(folder)!r}).fingerprint)"
    )
    command = [sys.executable, "-c", program]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=20)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert said == {f"{load_or_make(str(folder)).fingerprint}\n"}
    assert os.listdir(folder) == [FILE_NAME]


def test_file_system_without_hard_links_will_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = load_or_make(str(folder))
    assert os.listdir(folder) == [FILE_NAME]
    assert mode_of(folder / FILE_NAME) == 0o600
    assert load_or_make(str(folder)).fingerprint == made.fingerprint


def test_disk_that_is_full_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert refused(folder).startswith(f"state-dir: {folder}: No space left on device")
    assert os.listdir(folder) == []
