"""Questions of a fitted model: some columns given others, gradients, the mode, expectations, places at the base."""
