"""Raw files in, canonical records out: what a row means, what is wrong with it. No torch here."""
