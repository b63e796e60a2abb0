"""The whole path from a model and a device to a report, step by step and resumable."""
