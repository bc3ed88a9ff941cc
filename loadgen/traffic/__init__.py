"""What is sent and when: the simulated fleet, its posts, and the schedule.

May import `wire` and `words` only. Everything may import it but `csv`.
"""
