"""What is sent and when: the simulated fleet, its posts, and the schedule.

May import `words` only. Everything may import it but `csv`.
"""
