"""The documentation, the programs that the tests need, and the release."""
