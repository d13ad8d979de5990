"""siftune: fine-tune a language model reproducibly."""
