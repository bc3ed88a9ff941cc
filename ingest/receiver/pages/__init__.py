"""The pages of the data port that take posts, and what they say differently."""
