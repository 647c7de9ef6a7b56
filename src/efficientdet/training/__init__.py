"""Training: assignment of boxes to anchors, losses, schedule, and the run on Lightning."""
