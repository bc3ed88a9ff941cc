"""The pipeline without a process of its own, and the same as a library for programs of others."""
