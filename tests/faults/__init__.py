"""The public fault matrix: `./run faults`, which writes FAULTS.md.

Faults under load against the real service and a real PostgreSQL, each reading by reading accounted
for. A package of its own beside tests/system, not in it: it is a program with a report, of which
pytest runs a quick part only; it stands on the same children (`Service`, `Database`, `Line`).

    matrix.py      what a fault, a control and a mutant are; the list of all of them
    world.py       one service, one database, one line between them, traffic with a ledger
    own.py         what a fault posts beside that traffic, on record too
    *_faults.py    the faults, a family a file; controls.py: controls and mutants, which must lose
    patched.py     the service's own start, with a mutant or the forgetting disk put in before
    forgetting.py  what a disk keeps of our files when the power goes
    runner.py      runs them, some at a time; report.py writes down what came of it
"""
