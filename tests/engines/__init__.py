"""Tests that every engine must pass, and tests of the memory engine."""
