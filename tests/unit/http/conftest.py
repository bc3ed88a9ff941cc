"""One certificate for all tests of a port with TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificate


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def tls_settings(tls_files: tuple[Path, Path]) -> dict[str, Any]:
    """Give the settings of a port with TLS."""
    return {"tls_cert_file": str(tls_files[0]), "tls_key_file": str(tls_files[1])}
