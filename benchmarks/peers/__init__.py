"""Other projects' gossip beside ours, on the same task."""
