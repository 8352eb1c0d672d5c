"""Exercises that grade, and the mistakes they know."""
