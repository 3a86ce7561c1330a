"""Programs of others that find this package's models by entry point, and run them."""
