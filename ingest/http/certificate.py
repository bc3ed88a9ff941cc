"""The certificate of a TLS port and its private key, from files that may change while it runs.

Promises: what is in use is always a certificate with its own key. Files that cannot be used at the
start are a StartError; later they leave the last good ones in use, with an error in the log.
"""

from __future__ import annotations

import math
import os
import ssl
from pathlib import Path

from ingest.model.errors import StartError
from ingest.model.metrics import Metric, Metrics
from ingest.system.clock import unix_us
from ingest.system.logs import Occasionally, get_logger

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
SAID_EVERY_S = 10.0
ROUND_TRIPS_MAX = 3  # of a handshake


class Certificate:
    """A pair of PEM files. Blocks for some ms while it reads them.

    The first certificate of `cert_file` is the service's own; those that signed it follow.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self._log = get_logger("certificate")
        self._occasionally = Occasionally(SAID_EVERY_S)
        self._seen = self._look()
        try:
            self._context = _context_of(cert_file, key_file)
            self.ends_s = _ends_s(cert_file, self._context)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise StartError(self._what(error)) from error
        self._tell_if_over()

    def context(self) -> ssl.SSLContext:
        """Return what a new connection uses."""
        return self._context

    def read_if_changed(self) -> None:
        """Read the files again if one of them has changed since the last call."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            context = _context_of(*self._files)
            self.ends_s = _ends_s(self._files[0], context)
        except (OSError, ValueError) as error:
            if not isinstance(error, ssl.SSLError | ValueError):
                self._seen = ()  # they could not be read: that may change without a new file
            if self._occasionally.due("unusable") is not None:
                self._log.error("certificate_unusable", error=self._what(error))
            return
        self._context = context
        self._log.info("certificate_read", valid_until_s=self._end())
        self._tell_if_over()

    def _look(self) -> tuple[tuple[int, ...], ...]:
        return tuple(_seen(each) for each in self._files)

    def _tell_if_over(self) -> None:
        if self.ends_s * 1e6 < unix_us():
            self._log.error("certificate_expired", valid_until_s=self._end())

    def _end(self) -> int | None:
        return None if math.isnan(self.ends_s) else round(self.ends_s)

    def _what(self, error: Exception) -> str:
        cert_file, key_file = self._files
        for each in self._files:
            if not os.access(each, os.R_OK):
                return f"cannot read {each}: make it readable for this user, or name another file"
        reason = getattr(error, "reason", None) or error
        return (
            f"{cert_file} and {key_file} are not a certificate and its private key in PEM, without "
            f"a password ({reason})"
        )


def _seen(file: Path) -> tuple[int, ...]:
    """Return what a changed file does not share with the old one; nothing if there is none."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _no_password() -> str:
    raise ValueError("the private key has a password")


METRICS: Metrics[Certificate] = (
    Metric(
        "certificate_ends_seconds",
        "Until the data port's certificate ends.",
        lambda it: it.ends_s - unix_us() / 1e6,
    ),
)


def _context_of(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could ask for key work without end
    context.num_tickets = 1  # a device uses one, and each costs some 15 us
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert_file, key_file, password=_no_password)
    return context


def _ends_s(cert_file: Path, server: ssl.SSLContext) -> float:
    """Return the end of the validity, in seconds since 1970; NaN if no client takes it.

    The ssl module shows the content of a certificate only to a client that trusts it. So this is
    such a client, which ignores the time, and shakes hands with the server in memory.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.load_verify_locations(cert_file)
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    peer = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(ROUND_TRIPS_MAX):
        for side in (client, peer):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return math.nan
    found = client.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(found["notAfter"])))
