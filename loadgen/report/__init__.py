"""The reports of a run: text, JSON, one HTML page with charts; and the verdict of a proof.

May import `measure`, `proof` and what is below them. Only `cli` imports it.
"""
