"""TLS of one connection: between the socket and the protocol that speaks HTTP.

To the HTTP protocol it is the transport; to the event loop it is the protocol. A connection counts
from the moment at which it is accepted. So every bound of connections.py holds for one that never
finishes its handshake, and the time for a head includes the handshake.
A step of a handshake costs 0.1 to 1 ms of the event loop, for work with the private key. So it is
put off into the time that each round keeps for steps, where networks take turns, and so do first
steps and others. Handshakes that have begun are not bounded: one that says no more costs memory, as
any open connection, and no time.
Promises: no private key work before the client's first bytes are here. Bytes that are not TLS get
an answer in plain HTTP that says so.
Does not: read files (certificate.py), or decide when a step is due (loop_share.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from ingest.http.connection import Connection
from ingest.http.loop_share import LoopShare
from ingest.system.clock import monotonic_s

RECORDS = 64  # at most in one go: bytes of many tiny records, or of new keys, are work too
READ_BYTES = 16 * 1024  # the longest record: OpenSSL returns one at a time
HELLO_BYTES_MAX = 16 * 1024  # a client cannot send more before our answer; most send 0.5 to 2 KiB
EARLY_BYTES_MAX = 64 * 1024  # if more wait for a step of the handshake, the socket is not read
# OpenSSL gets no more at once. It returns at the first data for us; before that it would work on
# 256 KiB of nothing but new keys for 0.15 s. After this time the rest waits for a later round.
PIECE_BYTES = 4 * 1024
DECRYPT_S_MAX = 0.001
HANDSHAKE = 0x16  # the first byte of each TLS connection


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
