"""`ingest hold`: asks the running service whether writes are paused, or makes it try again now."""

from __future__ import annotations

import argparse
from typing import Any

from ingest.cli.context import ask
from ingest.cli.parser import JSON, Command, Ending, flag
from ingest.config.loading import Loaded
from ingest.model.causes import LETTERS_FULL
from ingest.system.clock import unix_us
from ingest.system.words import duration


def _show(_args: argparse.Namespace, loaded: Loaded) -> Ending:
    answer = ask(loaded.settings, "GET", "/readyz")
    if answer.get("reason"):
        answer["said"] = ask(loaded.settings, "GET", "/hold").get("said")
    lately = ask(loaded.settings, "GET", f"/history?since={unix_us() // 1_000_000 - 60}")
    came, *dead = (
        sum(filter(None, column))
        for name, column in lately.get("columns", {"received": ()}).items()
        if name == "received" or name.startswith("dead_")
    )
    answer["dead_letters_60s"] = (
        f"{min(1, sum(dead) / max(came, 1)):.0%}" if sum(dead) * 100 > came else None
    )
    return Ending(answer, state_text(answer))


def _release(args: argparse.Namespace, loaded: Loaded) -> Ending:
    ready = ask(loaded.settings, "GET", "/readyz")
    answer = ask(loaded.settings, "POST", "/hold/release", {"dead_letter": args.dead_letter})
    return Ending(answer, released_text(answer, ready))


def released_text(answer: dict[str, Any], ready: dict[str, Any]) -> str:
    """Return what was done; if a try alone does not help, also what to do first.

    `ready` is what /readyz said before.
    """
    if not answer.get("released"):
        return "nothing is on hold: writes are not paused"
    text = "released: the service tries to write now. See the result with `ingest hold show`"
    if ready.get("cause") != LETTERS_FULL:
        return text
    return f"{text}\nBut the dead letters are full: first make space. {ready.get('next', '')}"


def state_text(answer: dict[str, Any]) -> str:
    """Return what /readyz says, and the message of the database, as lines for a person."""
    # A message may quote a reading. Its control characters must not reach the terminal.
    said = "".join(c if c.isprintable() else " " for c in str(answer.get("said") or ""))
    anchor = answer.get("runbook")
    lines = {
        "state": answer.get("state"),
        "reason": answer.get("reason") or "-",
        "since": answer.get("cause_since") or answer.get("since"),
        "said": said,
        "next": answer.get("next"),
        "runbook": f"deploy/RUNBOOK.md#{anchor}" if anchor else "",
        "full in": _listed(
            {each: s and duration(s) for each, s in (answer.get("full_in_s") or {}).items()}
        ),
        "letters": _listed(
            {"about": answer.get("dead_letters_60s")},
            " of the readings of the last minute became dead letters, see "
            "deploy/RUNBOOK.md#ingestdeadlettersmany",
        ),
        "refused": _listed(answer.get("refused_60s"), " in the last minute"),
        "closed": _listed(answer.get("closed_60s"), " in the last minute"),
    }
    return "\n".join(f"{name + ':':<8} {text}" for name, text in lines.items() if text)


def _listed(found: dict[str, Any] | None, after: str = "") -> str:
    """Return `journal 11 h 5 min, disk 3 d 0 h`."""
    shown = ", ".join(f"{name} {value}" for name, value in (found or {}).items() if value)
    return shown and shown + after


COMMAND = Command(
    examples=("ingest hold show", "ingest hold release"),
    usage="COMMAND [options]",
    commands={
        "show": Command(
            "print the state, the reason, and the message of the database",
            ("ingest hold show", "ingest hold show --json"),
            _show,
            flags=(JSON,),
        ),
        "release": Command(
            "try to write now; do not wait for the next try",
            ("ingest hold release", "ingest hold release --dead-letter"),
            _release,
            flags=(
                flag(
                    "--dead-letter",
                    action="store_true",
                    help="also move all rows that the database refuses to the dead letters",
                ),
                JSON,
            ),
        ),
    },
)
