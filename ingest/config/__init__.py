"""Ground: the settings, each declared once, and where their values come from.

Imports model and system. Only app and cli read the settings; parts are given numbers.
"""
