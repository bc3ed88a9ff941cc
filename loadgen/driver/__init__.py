"""Sends posts when they are due, over many connections, and again until they have an answer.

May import `traffic` and what is below it. `measure`, `proof` and what is above them import it.
"""
