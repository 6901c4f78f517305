"""Flow matching, schedules, samplers, guidance and long video."""
