"""JSON of other senders, by the table of a source."""
