"""What some of the scripts need beside the package."""
