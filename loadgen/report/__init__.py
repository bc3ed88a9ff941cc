"""The reports of a run as text and as JSON, and the verdict of a proof.

May import `measure`, `proof` and what is below them. Only `cli` imports it.
"""
