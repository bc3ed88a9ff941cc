"""The commands of the roles: up, gateway, writer, stream, forward; and what doctor asks."""
