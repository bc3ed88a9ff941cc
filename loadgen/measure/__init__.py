"""One run of load, or many runs that search the highest rate, and the counts of a run.

May import `driver` and what is below it. `cli`, `demo` and `report` import it; `proof` does not.
"""
