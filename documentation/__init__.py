"""What the documentation site generates from the package. Not installed."""
