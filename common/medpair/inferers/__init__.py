"""How a trained network becomes volumes."""
