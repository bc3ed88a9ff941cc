"""Ground: the settings, each declared once, and where their values come from.

It imports model and system. Only app and cli read the settings; other parts are given numbers.
"""
