"""Of `./run clients`: what decides whether a client lost something."""
