"""Many random bodies through the decoders of the receiver, against oracles that share no code."""
