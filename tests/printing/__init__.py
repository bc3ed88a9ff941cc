"""Programs that print files of the repository from its code. The service does not need them."""
