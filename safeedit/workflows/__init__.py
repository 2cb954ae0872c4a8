"""What people do beside running one policy: plant canaries, compare editors, trace, REMEDI."""
