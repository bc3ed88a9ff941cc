"""`./run containers`: the image and the Compose files, run by an engine, under load and kills."""
