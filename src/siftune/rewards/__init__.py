"""Rewards for reinforcement learning: pure functions of prompt, completion and record. No torch."""
