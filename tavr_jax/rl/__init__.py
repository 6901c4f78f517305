"""Policy gradient: groups of rollouts, their rewards, two ways to learn from them."""
