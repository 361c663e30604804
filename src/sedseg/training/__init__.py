"""Training: what a recipe says, and the loop that carries it out."""
