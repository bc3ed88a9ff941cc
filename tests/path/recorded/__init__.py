"""Requests with their answers, and a state folder, recorded from the service of an older commit."""
