"""One suite per contract of ports.py, over every implementation."""
