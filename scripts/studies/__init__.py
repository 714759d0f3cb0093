"""What the study scripts share: runs over seeds, compared with each other."""
