"""What the daemon tells of itself to other programs: metrics and traces."""
