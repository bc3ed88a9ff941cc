"""What the service says over HTTP: the JSON of its answers, and the numbers of its /metrics.

May import `words` only. Everything above may import it.
"""
