"""How a training that was stopped, or died, goes on exactly where it was."""
