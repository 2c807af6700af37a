"""Jobs, schedules and sensors, and the comparisons of versions that determine what they request."""
