"""Photos with pixel labels: reading folders, augmenting, drawing training examples."""
