"""`./run containers`: image, Compose files, pods and units, run under load and kills."""
