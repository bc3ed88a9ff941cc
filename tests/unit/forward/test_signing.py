"""The signature of posts, and the file of its secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from pathlib import Path

import pytest

from ingest.config.origins import UnusableFile
from ingest.roles.forward.posts import Signer, signature

SECRET = "not-a-very-good-secret"


def test_signature_is_that_of_the_specification() -> None:
    """With the example of the specification's own libraries: a known answer."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def signed_with(headers: dict[str, str], secret: bytes) -> bool:
    """Whether headers of ("k", b"body") were made with a secret."""
    content = f"k.{headers['webhook-timestamp']}.body".encode()
    digest = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{digest}"


def test_secret_is_read_again_when_its_file_has_changed(tmp_path: Path) -> None:
    """By a write, or by another file in its place; a bad one changes nothing."""
    file = tmp_path / "secret"
    file.write_text(f" {SECRET}\n")
    signer = Signer(file)
    assert signed_with(signer.headers("k", b"body", 1.5), SECRET.encode())
    assert signer.headers("k", b"body", 1.5)["webhook-timestamp"] == "1"
    key = b"sixteen bytes at"
    other = tmp_path / "other"
    other.write_text("whsec_" + base64.b64encode(key).decode())
    other.rename(file)
    assert signed_with(signer.headers("k", b"body", 2), key)
    for bad in ("", "short", "whsec_" + "?" * 30, "a" * 20 + "\n" + "b" * 20, "\0\xff" * 9_000):
        file.write_text(bad)
        assert signed_with(signer.headers("k", b"body", 3), key), bad
    file.unlink()
    assert signed_with(signer.headers("k", b"body", 4), key)
    os.mkfifo(file)  # nobody writes it: a read would wait for ever
    assert signed_with(signer.headers("k", b"body", 5), key)
    file.unlink()
    file.write_text(SECRET)
    assert signed_with(signer.headers("k", b"body", 6), SECRET.encode())


@pytest.mark.parametrize("bad", [None, "", "short", "whsec_" + "?" * 30])
def test_start_with_an_unusable_secret_says_why_without_it(bad: str | None, tmp_path: Path) -> None:
    """The name of the file helps; its content is nobody's business."""
    file = tmp_path / "secret"
    if bad is not None:
        file.write_text(bad)
    with pytest.raises(UnusableFile) as caught:
        Signer(file)
    assert str(file) in str(caught.value)
    assert not bad or bad not in str(caught.value)
