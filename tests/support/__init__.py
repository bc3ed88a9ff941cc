"""What tests use: servers, fakes, makers of data."""
