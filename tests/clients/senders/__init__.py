"""One program for each client library. They run in the environment of the libraries."""
