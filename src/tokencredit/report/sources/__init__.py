"""What each command leaves in its folder, as a page; one file a command."""
