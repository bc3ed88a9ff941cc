"""Config: the settings, each declared once, and where their values come from.

Also the settings of the annexes. Only app, cli and the annexes read them; other parts are
given numbers.
"""
