"""Many chains on any target."""
