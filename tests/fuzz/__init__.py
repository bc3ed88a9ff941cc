"""Many random bodies through the decoders of the receiver, against oracles that share no code.

Half of the bodies follow the grammar of the format, the others are damaged. A body is taken, or
refused with a 4xx; a value, name or time that differs from that of the oracle is a finding, and
gets a test of its own. On 2026-11-27 a million bodies of each format (NDJSON: 100,000) had no
difference that is not fixed. Known: a line such as `a=5` of a post to a source, which is not JSON,
becomes a dead letter; replayed, it is read as a form.
"""
