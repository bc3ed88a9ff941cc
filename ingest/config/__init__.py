"""Ground: the settings, each declared once, and where their values come from.

Also those that only an annex follows. Only app, cli and the annexes read them; other parts are
given numbers.
"""
