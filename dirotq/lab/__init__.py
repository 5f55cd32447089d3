"""What a run leaves on disk: the stage cache, results and pictures."""
