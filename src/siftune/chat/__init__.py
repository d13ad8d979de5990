"""Conversations: how a chat template writes them, and which of their tokens are trained."""
