"""What people would use instead, each in its best form."""
