"""A kernel is one object."""
