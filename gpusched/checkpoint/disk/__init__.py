"""What lies on disk: publishing, checking and reading checkpoints. Knows nothing about training."""
