"""TLS of one connection, between the socket and the protocol that speaks HTTP; its certificate.

To the HTTP protocol it is the transport; to the event loop it is the protocol. A connection counts
from the moment at which it is accepted. So every bound of connections.py holds for one that never
finishes its handshake, and the time for a head includes the handshake.
A step of a handshake costs 0.1 to 1 ms of the event loop, for work with the private key. So it is
put off into the time that each round keeps for steps (rounds.py), where networks take turns, and so
do first steps and others. Handshakes that have begun are not bounded: one that says no more costs
memory, as any open connection, and no time.
Promises: no private key work before the client's first bytes are here. Bytes that are not TLS get
an answer in plain HTTP that says so. The files of the certificate may change while it is in use:
this is always one with its own key. Files that cannot be used at the start are a StartError; later
they leave the last good ones in use, with an error in the log.
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from ingest.http.connection import Connection
from ingest.http.rounds import LoopShare
from ingest.model.errors import StartError
from ingest.model.ledger import Metric, Metrics
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import Occasionally, get_logger

RECORDS = 64  # at most in one go: bytes of many tiny records, or of new keys, are work too
READ_BYTES = 16 * 1024  # the longest record: OpenSSL returns one at a time
HELLO_BYTES_MAX = 16 * 1024  # a client cannot send more before our answer; most send 0.5 to 2 KiB
EARLY_BYTES_MAX = 64 * 1024  # if more wait for a step of the handshake, the socket is not read
# OpenSSL gets no more at once. It returns at the first data for us; before that it would work on
# 256 KiB of nothing but new keys for 0.15 s. After this time the rest waits for a later round.
PIECE_BYTES = 4 * 1024
DECRYPT_S_MAX = 0.001
HANDSHAKE = 0x16  # the first byte of each TLS connection
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
SAID_EVERY_S = 10.0
ROUND_TRIPS_MAX = 3  # of a handshake


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """One connection. `inner` is the protocol that gets and sends what is decrypted.

    `context` returns the certificate in use. `plain` is the answer to a client that does not speak
    TLS.
    """

    __slots__ = (
        *("_context", "_incoming", "_inner", "_is_behind", "_is_established", "_is_over"),
        *("_is_paused", "_object", "_outgoing", "_plain", "_rest", "_steps", "_tcp"),
    )

    def __init__(
        self,
        inner: Connection,
        steps: LoopShare,
        *,
        context: Callable[[], ssl.SSLContext],
        plain: Callable[[], bytes],
    ) -> None:
        super().__init__()
        self._inner = inner
        self._steps = steps
        self._context = context
        self._plain = plain
        self._tcp: asyncio.Transport = self  # until `connection_made`
        self._rest = b""  # has come, and OpenSSL has not got it yet
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object: ssl.SSLObject | None = None  # from the first step on
        self._is_established = False
        self._is_behind = False  # some bytes are worked on in a later round
        self._is_over = False  # the client has said in TLS that it sends no more
        self._is_paused = False  # by the HTTP protocol

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the HTTP protocol at once: the connection counts before its handshake."""
        self._tcp = cast(asyncio.Transport, transport)
        self._inner.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the handshake and the HTTP protocol."""
        self._steps.forget(self._step, self._inner.client.network)
        self._object = None
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Decrypt; or ask for a step of the handshake."""
        if self._is_established:
            self._decrypt(data)
            return
        if self._object is None and not self._rest and data[0] != HANDSHAKE:
            self._tcp.write(self._plain())
            self._tcp.close()
            return
        self._rest += data
        if self._object is None and len(self._rest) > HELLO_BYTES_MAX:
            self._tcp.abort()  # thousands may wait for their first step
            return
        # Else the socket is read on: the end of a client that has gone must be seen at once.
        if len(self._rest) > EARLY_BYTES_MAX:
            self._hold()
        self._put_off(self._step, begins=self._object is None)

    def eof_received(self) -> bool:
        """The client sends no more. Without an end in TLS, this is a broken connection too."""
        return self._is_established and bool(self._inner.eof_received())

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()

    def _put_off(self, go_on: Callable[[], None], *, begins: bool = False) -> None:
        self._steps.put_off(go_on, self._inner.client.network, begins=begins)

    # The handshake

    def _step(self) -> None:
        """Do the next step of the handshake with the next piece of the bytes that are here."""
        if self._tcp.is_closing() or self._is_established:
            return
        self._incoming.write(self._rest[:PIECE_BYTES])
        self._rest = self._rest[PIECE_BYTES:]
        if self._is_behind and len(self._rest) <= EARLY_BYTES_MAX:
            self._release()
        if self._object is None:
            self._object = self._context().wrap_bio(
                self._incoming, self._outgoing, server_side=True
            )
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._rest:
                self._put_off(self._step)
            return
        except ssl.SSLError:
            self._flush()  # the alert says why
            self._tcp.close()
            return
        self._is_established = True
        self._flush()
        if self._incoming.pending or self._rest:
            self._go_on()

    # From bytes to bytes

    def _decrypt(self, data: bytes) -> None:
        tls, incoming = self._object, self._incoming
        if tls is None or self._is_over:  # after its end a client may send on: nobody would read it
            return
        data, at = self._rest + data, 0
        parts: list[bytes] = []
        until_s = monotonic_s() + DECRYPT_S_MAX
        try:
            while True:
                if not incoming.pending:
                    incoming.write(data[at : at + PIECE_BYTES])
                    at += PIECE_BYTES
                self._read(tls, parts)
                if at >= len(data) or len(parts) >= RECORDS or self._is_over:
                    break
                if monotonic_s() >= until_s:
                    break
        except ssl.SSLError:
            self._flush()
            self._tcp.abort()
            return
        self._rest = data[at:]
        if (self._rest or incoming.pending) and not self._is_over:
            self._hold()
            self._put_off(self._go_on)
        if self._outgoing.pending:
            self._flush()
        if parts:
            self._inner.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._is_over:
            self._rest = b""
            if not self._tcp.is_closing() and not self._inner.eof_received():
                self.close()

    def _read(self, tls: ssl.SSLObject, parts: list[bytes]) -> None:
        """Decrypt what OpenSSL has. Raises ssl.SSLError for what is not valid."""
        incoming = self._incoming
        try:
            # Asking for more than there is would raise an error, which costs as much as the rest.
            while (incoming.pending or tls.pending()) and len(parts) < RECORDS:
                part = tls.read(READ_BYTES)
                if not part:
                    self._is_over = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass

    def _hold(self) -> None:
        """Read nothing until `_release`: bytes that are here have to be worked on first."""
        if not self._is_behind:
            self._is_behind = True
            self._tcp.pause_reading()

    def _release(self) -> None:
        self._is_behind = False
        if not self._is_paused:
            self._tcp.resume_reading()

    def _go_on(self) -> None:
        """Decrypt the next part of what is here."""
        if not self._tcp.is_closing():
            self._release()
            self._decrypt(b"")

    def _flush(self) -> None:
        if self._outgoing.pending and not self._tcp.is_closing():
            self._tcp.write(self._outgoing.read())

    # Called by the HTTP protocol, as its transport

    def write(self, data: Any) -> None:
        """Encrypt and send."""
        tls, tcp = self._object, self._tcp
        if tls is None or not self._is_established or tcp.is_closing():
            return
        try:
            written = tls.write(data)
            if written < len(data):  # one record at a time
                left = memoryview(data)[written:]
                while left:
                    left = left[tls.write(left) :]
        except ssl.SSLError:
            tcp.abort()
            return
        tcp.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        """Both TLS and TCP have an end of one direction."""
        return self._tcp.can_write_eof()

    def write_eof(self) -> None:
        """Say that nothing more is sent."""
        self._say_end()
        self._tcp.write_eof()

    def close(self) -> None:
        """Say that nothing more is sent, and close once all is sent."""
        if not self._tcp.is_closing():
            self._say_end()
            self._tcp.close()

    def _say_end(self) -> None:
        if self._object is not None and self._is_established:
            with suppress(ssl.SSLError):
                self._object.unwrap()
            self._flush()

    def abort(self) -> None:
        """Close at once."""
        self._tcp.abort()

    def is_closing(self) -> bool:
        """Whether the socket is closing."""
        return self._tcp.is_closing()

    def pause_reading(self) -> None:
        """Read no bytes of the socket."""
        self._is_paused = True
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Read the socket again, if nothing is left to decrypt."""
        self._is_paused = False
        if not self._is_behind:
            self._tcp.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Return the encrypted bytes that wait to be sent."""
        return self._tcp.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the socket knows."""
        return self._tcp.get_extra_info(name, default)


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


METRICS: Metrics[Certificate] = (
    Metric(
        "certificate_ends_seconds",
        "Until the data port's certificate ends.",
        lambda it: it.ends_s - unix_us() / 1e6,
    ),
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
