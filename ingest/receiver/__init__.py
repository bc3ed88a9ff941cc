"""The receiver: answers a post, with the help of formats, dead letters and the buffer."""
