"""The content and the moments of posts: the simulated fleet, its posts, and the schedule.

May import `wire` and `words` only. Everything may import it but `csv`.
"""
