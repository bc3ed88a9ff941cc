"""Forty mistakes that the tests must find, as patches, and a runner for them.

They were chosen from the contract by somebody who did not choose the tests: a mistake is found if
`./run test` fails because of it. The first line of a patch names the tests that are tried first,
the second one says what the program then does wrong. Whoever changes code that a patch changes may
correct the patch.
"""
