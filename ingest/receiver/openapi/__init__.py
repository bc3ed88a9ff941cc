"""The OpenAPI document of the data port. Only endpoint.py and `print_docs` import it."""
