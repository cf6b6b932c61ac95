"""What one node does: replica, coordinator, links to its peers."""
