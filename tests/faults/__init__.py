"""The public fault matrix: `./run faults`, which writes docs/reference/faults.md.

Faults under load against the real service and a real PostgreSQL; every reading is accounted for. It
is a package beside tests/system, not in it: it is a program with a report, and pytest runs only a
quick part of it. Both use the same child processes and proxy (`Service`, `Database`,
`FaultyProxy`).

    matrix.py      defines fault, control and mutant; the list of all of them
    world.py       one service, one database, a proxy between them, traffic with a ledger
    broker_world.py, years_world.py
                   the same with a broker; with partitions that leave for an archive
    own.py         the posts of a fault itself beside that traffic, on record too
    *_faults.py    the faults, a family a file; controls.py: controls and mutants, which must lose
    patched.py     the service's own start, after a mutant or the forgetting disk is put in
    forgetting.py  the content that a disk may have after a power loss
    runner.py      runs the faults, some at a time; report.py writes the results
"""
