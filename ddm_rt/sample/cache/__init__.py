"""Steps without a call of the model: found once for a bundle, recorded in it, and taken by a request."""
