"""NATS JetStream: the connection, the streams, publishing and pulling. Knows no other role."""
