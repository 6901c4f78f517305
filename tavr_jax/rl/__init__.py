"""Policy gradient: rollouts, rewards, objective."""
