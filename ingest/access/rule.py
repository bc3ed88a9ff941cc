"""Whether everybody may send, or only who has a token: the setting `access`."""

from __future__ import annotations

from ingest.model.errors import StartError

AUTO, TOKEN, OPEN = "auto", "token", "open"


def is_open(access: str, *, loopback: bool, tokens: int, address: str, run: str) -> bool:
    """Return whether everybody may send to `address`; without it, a token is needed.

    Raises StartError where `auto` finds nobody with a token beyond the loopback: then a start would
    refuse all devices. `run` is the program, for the text.
    """
    if access == AUTO and not loopback and not tokens:
        raise StartError(
            f"{address} is open to the network, and nobody has a token. Make one, which devices "
            f"send with each post: `{run} token new NAME`. Or let everybody post: --access open "
            "(INGEST_ACCESS=open)"
        )
    return access == OPEN or (access == AUTO and loopback and not tokens)
