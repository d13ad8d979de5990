"""Training on each token once: packs without padding whose rows share their prefixes."""
