"""Keys open the service; nothing else does, and no key is kept in the clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.auth import ApiKeys, hash_key, is_loopback
from soundstage.errors import NotAuthenticated, NotAuthorized


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_text(f"# newsroom\nnewsroom:{hash_key('open sesame')}\n\nstudio:{hash_key('another')}\n")
    return ApiKeys.read(file)


@pytest.mark.parametrize("header", ["Bearer open sesame", "bearer another"])
def test_a_known_key_opens(keys: ApiKeys, header: str) -> None:
    keys.check(header)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic open sesame"])
def test_without_a_key_the_answer_says_how_to_send_one(keys: ApiKeys, header: str | None) -> None:
    with pytest.raises(NotAuthenticated, match="Authorization: Bearer"):
        keys.check(header)


@pytest.mark.parametrize("key", ["wrong", hash_key("open sesame"), "open sesame2"])
def test_a_wrong_key_does_not_open_and_is_not_repeated(keys: ApiKeys, key: str) -> None:
    with pytest.raises(NotAuthorized) as error:
        keys.check(f"Bearer {key}")
    assert key not in error.value.detail


def test_no_keys_leave_it_open() -> None:
    ApiKeys({}).check(None)


@pytest.mark.parametrize("line", ["secret-in-the-clear", "name:abc", "name:" + "g" * 64, "a b:" + "0" * 64])
def test_a_malformed_file_is_refused_without_showing_the_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ok:{hash_key('x')}\n{line}\n")
    with pytest.raises(ValueError, match="line 2") as error:
        ApiKeys.read(file)
    assert line not in str(error.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nobody yet\n")
    with pytest.raises(ValueError, match="no key"):
        ApiKeys.read(file)


def replace(file: Path, text: str) -> None:
    """As a kubelet does: another file comes into the place of the old one."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.rename(file)


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"newsroom:{hash_key('old')}\n")
    keys = ApiKeys.read(file)
    replace(file, f"newsroom:{hash_key('old')}\nnewsroom-2027:{hash_key('new')}\n")
    keys.check("Bearer old")
    keys.check("Bearer new")
    replace(file, f"newsroom-2027:{hash_key('new')}\n")
    keys.check("Bearer new")
    with pytest.raises(NotAuthorized):
        keys.check("Bearer old")


def test_a_file_with_a_mistake_or_none_leaves_the_last_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(f"newsroom:{hash_key('old')}\n")
    keys = ApiKeys.read(file)
    replace(file, "newsroom: a key in the clear\n")
    for _ in range(3):
        keys.check("Bearer old")
    assert len(caplog.records) == 1, "said once, not with every request"
    assert "in the clear" not in caplog.text
    file.unlink()
    for _ in range(3):
        keys.check("Bearer old")
    assert len(caplog.records) == 2
    replace(file, f"newsroom:{hash_key('new')}\n")
    keys.check("Bearer new")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", None])
def test_other_addresses_are_not(host: str | None) -> None:
    assert not is_loopback(host)
