"""What the code says of itself: parameters, multiply-adds, tables."""
