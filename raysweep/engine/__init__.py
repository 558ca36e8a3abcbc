"""From a config to committed results: inspect, plan, drive, execute. The only part that knows tasks."""
