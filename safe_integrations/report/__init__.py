"""What an answer tells about itself."""
