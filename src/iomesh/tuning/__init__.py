"""What of this machine's settings slows iomesh down, what to set instead and why; applies that, and takes it back."""
