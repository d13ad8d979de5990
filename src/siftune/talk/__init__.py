"""What was trained is asked: `siftune samples` and `siftune chat`. Nothing is changed or locked."""
