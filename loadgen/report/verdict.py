"""The result of a comparison, as text for people."""

from __future__ import annotations

from loadgen.proof.conclude import Result
from loadgen.proof.reconcile import FAULTS, Fault
from loadgen.words import counted

CHECKS = {
    "not lost": "what was acknowledged is in the table, or in an open dead letter",
    "once": "no reading is in the table twice, or both in the table and in an open dead letter",
    "only sent": "nothing is stored that was never sent",
    "unaltered": "every value to the last bit, every dead letter to the last byte",
    "true answers": "what was refused is not stored, and each answer was true",
    "replayed": "all that the service replays by itself has been replayed",
    "balance": "the balance of the service is 0, and it dropped nothing",
}
TEXT_CHARACTERS_MAX = 200


def text(result: Result) -> str:
    """Return the summary: numbers, one line a check, the first faults of each kind."""
    counts = result.counts
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(result.reasons.items()))
    again = ", ".join(
        f"{count:,} after {f'status {status}' if status else 'no answer'}"
        for status, count in sorted(result.tries.items())
    )
    lines = [
        f"run {result.plan.run}: {counted(result.posts, 'post')}, "
        f"{counted(counts['readings'], 'reading')}, seed {result.plan.seed}",
        f"  acknowledged   {counts['acknowledged']:>12,}",
        f"  in the table   {counts['in_table']:>12,}",
        f"  dead-lettered  {counts['in_letters']:>12,}" + (f"  ({reasons})" if reasons else ""),
        f"  invalid, sent  {counts['invalid']:>12,}",
        f"  not known      {counts['unknown']:>12,}"
        + (f"  (tried again: {again})" if again else ""),
        "",
    ]
    lines += [_line(name, what, result) for name, what in CHECKS.items()]
    lines += [f"note: {note}" for note in result.notes]
    for kind, first in result.first.items():
        count = result.faults[kind]
        lines += ["", f"{kind}: {count:,}" + (f", the first {len(first)}:" if count > 1 else "")]
        lines += [_fault(each) for each in first]
    verdict = "as promised" if result.green else "NOT as promised"
    if result.green and not result.is_proof:
        verdict = "NO PROOF: of more than half of the readings the outcome is not known"
    lines += [
        "",
        f"{verdict} (compared in {result.took_s:.1f} s)",
        f"its rows: device_id like '{result.plan.prefix}%'",
    ]
    return "\n".join(lines)


def _line(name: str, what: str, result: Result) -> str:
    broken = sum(count for kind, count in result.faults.items() if FAULTS[kind] == name)
    balance = result.balance  # while readings are held it may differ from 0 for a moment
    unseen = name in {"replayed", "balance"} and balance is None
    unseen |= name == "balance" and balance is not None and not (balance.is_done or balance.is_zero)
    mark = f"{broken:,} BROKEN" if broken else "not seen" if unseen else "ok"
    return f"{name:<12} {mark:>10}  {what}"


def _fault(fault: Fault) -> str:
    number = "" if fault.number is None else f"reading {fault.number} "
    said = f"  {number}{fault.reading}: promised: {fault.promised}; found: {fault.found}"
    return said if len(said) <= TEXT_CHARACTERS_MAX * 2 else said[: TEXT_CHARACTERS_MAX * 2] + " .."
