"""The proof of what is trained: a page and a terminal view, token by token."""
