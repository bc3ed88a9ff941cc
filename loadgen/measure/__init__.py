"""One run of load, or many that search the highest rate, and the counts that are made of it.

May import `driver` and what is below it. `cli`, `demo` and `report` import it; `proof` does not.
"""
