"""How the load driver checks the certificate of an https service."""

from __future__ import annotations

import ssl

from loadgen.traffic.post import Target


def context_of(target: Target) -> ssl.SSLContext | None:
    """Return what connections to a target need; None without TLS.

    Raises OSError, which names the file, if it cannot be used. Blocks for some ms.
    """
    if not target.tls:
        return None
    try:
        return ssl.create_default_context(cafile=target.ca_file or None)
    except OSError as error:  # ssl.SSLError is one, and names no file
        raise OSError(f"--ca {target.ca_file}: {error.strerror or error}") from error
