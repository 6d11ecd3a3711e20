"""Pre-train → select → prune → hot start, in stages that can be left and entered again."""
