"""The dead-letter queue: what could not be written, kept until somebody acts."""
