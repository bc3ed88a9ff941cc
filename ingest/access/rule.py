"""Whether everybody may send, or only who has a token: the setting `access`."""

from __future__ import annotations

from ingest.model.errors import StartError

AUTO, TOKEN, OPEN = "auto", "token", "open"


def is_open(access: str, *, private: bool, tokens: int, address: str, run: str) -> bool:
    """Return whether everybody may send to `address`; without it, a token is needed.

    It is `private` if only this machine reaches it, and no proxy is trusted that may bring posts of
    others. Raises StartError where `auto` finds nobody with a token for a port that is not private:
    then a start would refuse all devices. `run` is the program, for the text.
    """
    if access == AUTO and not private and not tokens:
        raise StartError(
            f"{address} is open to the network, or a trusted proxy is in front of it, and nobody "
            f"has a token. Make one, which devices send with each post: `{run} token new NAME`. Or "
            "let everybody post: --access open (INGEST_ACCESS=open)"
        )
    return access == OPEN or (access == AUTO and private and not tokens)
