"""Rewards that a program can check, and GRPO, which trains on them."""
