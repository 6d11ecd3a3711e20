"""Gates and how they learn: everything between a model's embeddings and the decision what goes."""
