"""The rows of the table: each a function that tries one fault, by a seed."""
