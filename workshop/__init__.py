"""What train, bench and convert share, and the library must not know."""
