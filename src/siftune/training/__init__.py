"""How weights are trained: which of them are adapted, and by which options of TRL."""
