"""Training: features, code discovery, the DDM objective and the loop. Needs torch; nothing later imports it."""
