"""Certificates for a test, made with the line of openssl that docs/use/posting.md shows."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def make_certificate(
    folder: Path, name: str = "ours", *, days: int = 30, more: tuple[str, ...] = ()
) -> tuple[Path, Path]:
    """Write a certificate for localhost and its key; return both files. Blocks."""
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", str(days), "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *more),
            *("-keyout", key_file, "-out", cert_file),
        ],
        check=True,
        capture_output=True,
    )
    return cert_file, key_file


def trusting(cert_file: Path) -> ssl.SSLContext:
    """Return the context of a client that trusts this certificate."""
    return ssl.create_default_context(cafile=str(cert_file))


def make_signed(folder: Path, name: str, *, by: str) -> tuple[Path, Path]:
    """Write a certificate that another one of this folder has signed; return it and its key."""
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "30", "-subj", f"/CN={name}"),
            *("-CA", folder / f"{by}.crt", "-CAkey", folder / f"{by}.key"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", key_file, "-out", cert_file),
        ],
        check=True,
        capture_output=True,
    )
    return cert_file, key_file
