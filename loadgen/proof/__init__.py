"""Proves that nothing was lost: numbered readings, a ledger of them, and the comparison at the end.

May import `driver` and what is below it. `cli`, `demo` and `report` import it; `measure` does not.
"""
