"""What groups the codes give, and the weights of codes that reach a target over groups."""
