"""WHERE FROM: config and weights as the Hugging Face hub holds them."""
