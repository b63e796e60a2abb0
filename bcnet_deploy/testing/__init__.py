"""Conformance suites: subclass one in your tests to show that your own part fits."""
