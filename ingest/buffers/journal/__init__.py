"""The journal: a buffer whose blocks are on the disk too, and outlive the process."""
